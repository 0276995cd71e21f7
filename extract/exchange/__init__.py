"""Regions and captions in the layouts that researchers already hold (docs/exchange.md), a file a format.

| file | does |
|---|---|
| `source.py` | what a reader is: a survey of all files, then any image's regions by their place |
| `manifest.py`, `regions.py` | the stages of an imported data set |
| `export.py` | the way out |

Nothing here unpickles or unpacks what it reads, or imports torch: importing a store takes little memory.
"""
