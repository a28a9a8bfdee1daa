"""Empty of code, so that `manifest.py` loads alone; begin with `protocol.py`."""
