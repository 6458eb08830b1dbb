"""What is shown while something is sent: rate, time left, live or plain, and which cloud it waits for."""

from __future__ import annotations

import pytest

from cuckoo_mount.cli import sending
from cuckoo_mount.cli.sending import PLAIN_EVERY_S, RATE_WINDOW_S, SendingLine, SendingRate, why_degraded
from cuckoo_mount.cli.statusview import UNBOUNDED_WIDTH, notes_on, old_errors, render

MIB = 1 << 20
DOWN = {"name": "usb", "state": "down", "error": "cloud usb: no such folder"}


def test_the_rate_counts_what_was_sent_not_what_was_written() -> None:
    rate = SendingRate()
    rate.note(0.0, 100)
    assert (rate.bytes_per_s, rate.time_left_s) == (0.0, None)
    rate.note(10.0, 80)
    assert rate.bytes_per_s == 2.0
    assert rate.time_left_s == 40.0
    rate.note(20.0, 1080)  # 1000 were written
    assert rate.bytes_per_s == 1.0
    assert rate.time_left_s == 1080.0
    assert rate.sent_bytes == 20


def test_a_rate_is_not_told_too_early_and_forgets() -> None:
    rate = SendingRate()
    rate.note(0.0, 100)
    rate.note(0.1, 90)
    assert rate.bytes_per_s == 0.0
    for second in range(1, 100):
        rate.note(float(second), 90)
    assert second > RATE_WINDOW_S
    assert rate.bytes_per_s == 0.0
    assert rate.time_left_s is None


def pending(left: int, *, troubles: tuple[dict[str, str], ...] = ()) -> dict[str, object]:
    return {"files": 2, "chunks": left // MIB, "bytes": left, "troubles": list(troubles)}


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    now = 100.0
    with SendingLine(quiet=False, clock=lambda: now) as line:
        line.update(pending(60 * MIB))
        for _ in range(int(2 * PLAIN_EVERY_S)):
            now += 0.5
            line.update(pending(50 * MIB, troubles=(DOWN,)))
        now += PLAIN_EVERY_S
        line.update(pending(40 * MIB))
        now += PLAIN_EVERY_S
        line.update(pending(0) | {"files": 0})
    assert capsys.readouterr().err.splitlines() == [
        "sending: 50.0 MiB in 2 files left, 1.0 MiB/s, about 50 s; cloud usb is down: no such folder",
        "sending: 40.0 MiB in 2 files left, 1.0 MiB/s, about 40 s",
    ]


def test_nothing_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter(range(0, 1000, 100))
    with SendingLine(quiet=True, clock=lambda: next(times)) as line:
        for _ in range(3):
            line.update(pending(MIB))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59, "59 s"), (90, "2 min"), (9000, "2.5 h"), (400_000, "5 days")]
)
def test_durations(seconds: float, words: str) -> None:
    assert sending.human_time(seconds) == words


def test_words_for_what_is_left() -> None:
    assert sending.describe({"files": 1, "bytes": 5}) == "5 B in 1 file"
    assert sending.describe(None) == "0 B in 0 files"
    assert sending.because([DOWN, {"name": "s3", "state": "unknown", "error": ""}]) == (
        "; cloud usb is down: no such folder; cloud s3 is unknown: it has not answered yet"
    )
    assert sending.why_degraded({"degraded": 0, "troubles": [DOWN]}) == ""
    assert sending.why_degraded({"degraded": 1, "troubles": [DOWN]}).endswith("; cloud usb is down: no such folder")
    assert "as soon as there are clouds enough" in sending.why_degraded({"degraded": 2, "troubles": []})


# -- status --


def a_status(**changes: object) -> dict[str, object]:
    """Return a status with everything in it."""
    cloud = {
        **{"name": "usb", "url": "s3://b", "state": "ok", "used_bytes": 3 << 30, "capacity_bytes": 10 << 30},
        **{"packs": 192, "requests": 1234, "errors": 3, "bytes_up": 5, "bytes_down": 6, "sending_bytes": 16 * MIB},
        **{"last_error": "", "last_error_age_s": None},
    }
    down = {"state": "down", "last_error": "cloud nas: no route", "last_error_age_s": 75.0, "sending_bytes": 0}
    other = cloud | {"name": "a-cloud-with-a-name-that-is-really-long", "capacity_bytes": None}
    healing = {"healed": 3, "bytes_per_s": 3.0 * MIB, "time_left_s": 120.0}
    return {
        **{"drive": "photos", "pid": 7, "redundancy": "2", "mountpoint": "/home/me/Cuckoo", "state": "degraded"},
        "pending": {"files": 3, "chunks": 1200, "bytes": 1200 * MIB},
        "epoch": {"local": 0, "cloud": None, "age_s": None},
        "cache": {"bytes": 3, "limit_bytes": 10, "hits": 99, "misses": 1, "prefetched": 4, "last_error": "no luck"},
        "clouds": [cloud, cloud | down | {"name": "nas"}, other],
        "packs": {"count": 400, "live_bytes": 5, "stored_bytes": 6, "degraded": 4, "healing": healing},
        "space": {"total_bytes": 100 * MIB, "free_bytes": MIB - 1},
        "recovery_key_shown": False,
    } | changes


def shown(status: dict[str, object], width: int, *, colour: bool = False) -> str:
    from rich.console import Console

    console = Console(width=width, force_terminal=colour, no_color=not colour, highlight=False)
    with console.capture() as capture:
        console.print(render(status, width=width))
    return capture.get()


@pytest.mark.parametrize("width", [40, 60, 80, 200, UNBOUNDED_WIDTH])
def test_status_fits_every_width(width: int) -> None:
    said = shown(a_status(), width)
    assert max(len(line.rstrip()) for line in said.splitlines()) <= width
    assert "…" not in said  # nothing that matters is cut
    words = " ".join(said.split())
    for part in ("photos", "1.2 GiB in 3 files", "16.0 MiB on the way to usb", "(99 %)", "4 degraded", "30 %", "down"):
        assert part in words
    assert "4 degraded, healing at 3.0 MiB/s, about 2 min left" in words
    assert "The clouds are full" in words
    assert "\x1b" not in said
    assert "\x1b[" in shown(a_status(), width, colour=True)


def test_an_epoch_is_shown_when_there_is_one() -> None:
    said = shown(a_status(epoch={"local": 0, "cloud": None, "age_s": None}), 80)
    assert "on this machine only, until the first epoch is on the clouds: cuckoo sync" in " ".join(said.split())
    said = shown(a_status(epoch={"local": 18, "cloud": 17, "age_s": 42.0}), 80)
    assert "18 here, 17 on the clouds, the state of 42 s ago" in said
    assert "on this machine only" not in said
    said = shown(a_status(epoch={"local": 17, "cloud": 17, "age_s": 0.0}), 80)
    assert "epoch 17 on the clouds cloud" in " ".join(said.split())


def test_why_a_drive_turned_read_only_is_shown() -> None:
    said = shown(a_status(state="read-only", read_only_reason="another machine has taken the drive over"), 200)
    assert "Read-only: another machine has taken the drive over." in said


@pytest.mark.parametrize(
    ("epoch", "says"),
    [
        ({"local": 5, "cloud": 5}, ""),
        ({"local": 5, "cloud": 4}, "on fewer clouds than keep them safe; cloud nas is down: gone"),
        ({"local": 1, "cloud": None}, "on fewer clouds than keep them safe; cloud nas is down: gone"),
        ({"local": 0, "cloud": None}, ""),
        (None, ""),
    ],
)
def test_an_epoch_on_too_few_clouds_is_no_success(epoch: dict[str, object] | None, says: str) -> None:
    trouble = {"name": "nas", "state": "down", "error": "cloud nas: gone"}
    said = why_degraded({"degraded": 0, "epoch": epoch, "troubles": [trouble]})
    assert says in said
    assert bool(said) == bool(says)


def test_notes_say_what_to_do() -> None:
    notes = notes_on(a_status())
    assert "cloud nas is down: no route (1 min ago).  It is asked again by itself" in notes[0]
    assert "cuckoo cloud test nas --drive photos" in notes[0]
    assert any("4 packs have fewer copies" in note for note in notes)
    assert any("key show-recovery --drive photos" in note for note in notes)
    one = a_status(clouds=[{"name": "b", "url": "s3://b", "state": "full", "last_error": ""}], state="offline")
    text = "\n".join(notes_on(one))
    assert "cuckoo cloud set b --capacity SIZE --drive photos" in text
    assert "2 copies need 2 clouds, there are 1" in text
    assert "Nothing can be sent now" in text


def test_an_error_that_has_passed_is_mentioned_for_a_day() -> None:
    cloud = {
        "name": "b",
        "url": "s3://b",
        "state": "ok",
        "last_error": "cloud b: timed out",
        "last_error_age_s": 4000.0,
    }
    assert old_errors({"clouds": [cloud]}) == ["cloud b is well again after: timed out (1.1 h ago)"]
    assert old_errors({"clouds": [cloud | {"last_error_age_s": 90_000.0}]}) == []


def test_a_status_of_another_version_is_shown_all_the_same() -> None:
    assert "photos" in shown({"drive": "photos"}, 80)
