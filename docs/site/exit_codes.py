"""The page "Exit codes": the table of `edgeconvnext.cli.ending`, and the errors with what each one means."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from markdown_table import cell, table

import edgeconvnext.errors
from edgeconvnext.cli import ending
from edgeconvnext.errors import EdgeConvNextError

_OPENING = """# Exit codes and errors

What a script or a CI job can rely on: how each command ends, and which exception a Python function raises. This page is made from
`edgeconvnext/cli/ending.py` and `edgeconvnext/errors.py`.

A message says what is wrong, where, and how to fix it, in one paragraph on standard error. `--json` prints the result on standard
output, and nothing else goes there.

## Exit codes
"""

_IN_A_SHELL = """## In a script

```sh
edgeconvnext export --target onnx --model digits --calib digits --eval digits_test
case $? in
    0) echo "ship it" ;;
    3) echo "a gate was missed; the report says which" ;;
    4) echo "install the target's runtime, or measure on the device" ;;
esac
```

A gate that could not be measured does not fail: `verdict` in `report.json` is then `not_measured` ([report](report.md)).
"""


def errors() -> Iterator[type[EdgeConvNextError]]:
    """Give the exceptions that a user can meet, by name."""
    for _, known in inspect.getmembers(edgeconvnext.errors, inspect.isclass):
        if issubclass(known, EdgeConvNextError):
            yield known


def page() -> str:
    """Return the page in Markdown."""
    codes = [line for line in (inspect.getdoc(ending) or "").splitlines() if line.startswith("|")]
    rows = [
        (f"`{known.__name__}`", f"`{known.__mro__[1].__name__}`", str(known.exit_code), cell(_first_sentence(known)))
        for known in errors()
    ]
    return "\n".join(
        [
            _OPENING,
            *codes,
            "",
            _IN_A_SHELL,
            "## Exceptions",
            "",
            "`edgeconvnext.errors` has one class for each thing that a user can fix.",
            "",
            table(("exception", "is a", "exit code", "raised for"), rows),
        ]
    )


def _first_sentence(known: type) -> str:
    return (inspect.getdoc(known) or "").partition("\n\n")[0]
