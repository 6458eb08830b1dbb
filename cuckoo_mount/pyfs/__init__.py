"""The drive as a PyFilesystem, for programs that need no mount: `fs.open_fs("cuckoo://default")`.

Importing this package imports `fs` through our stand-in for pkg_resources.  A program on a machine where setuptools is
missing, or is 82 or newer, does so before its own `import fs`; everybody else need not know.
"""

from cuckoo_mount.clouds import fsimport as fsimport
