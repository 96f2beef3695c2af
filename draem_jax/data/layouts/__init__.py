"""The layouts of data sets on disk, by name."""

LAYOUTS = {'mvtec': None}
