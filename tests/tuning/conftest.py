"""The small networks of the quantization tests serve here too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "quantize"))
