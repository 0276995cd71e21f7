"""Regions in the layouts that researchers already hold (docs/exchange.md).

| file | does |
|---|---|
| `formats/` | a file a format, reader and writer together; `manifests.imported.FORMATS` has them by name |
| `source.py` | what a reader is: a survey of all files, then any image's regions by their place |
| `tsv.py`, `files.py` | what tables of base64 share, and folders with a file an image |
| `checks.py` | what holds of every image's regions |
| `manifest.py` | the manifest stage of an imported data set |
| `export.py` | the way out |

Nothing here unpickles what it reads, unpacks it, or imports torch: importing a store takes little memory.
"""
