"""Regions in the layouts that researchers already hold (docs/exchange.md).

| file | does |
|---|---|
| `formats/` | a file a format, reader and writer together; `manifests.imported.FORMATS` has them by name |
| `source.py` | the base of readers: a survey of all files, then any image's regions by their place |
| `tsv.py`, `files.py` | bases of formats: tables of base64, and folders with a file an image |
| `checks.py` | the checks of every image's regions |
| `manifest.py` | the manifest stage of an imported data set |
| `export.py` | the export |

Nothing here unpickles what it reads, unpacks it, or imports torch: importing a store takes little memory.
"""
