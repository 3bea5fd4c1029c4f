"""What the name of a licence says about the use of rows, for warnings on the data card. No legal advice.

In: a licence as a source or a recipe states it, such as `cc-by-nc-4.0` or `CC BY 4.0`. Out: the conditions that a licence
of this name has, by its public summary; None where the name is not known here.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Terms:
    """Conditions on publishing what was made from the rows."""

    credit: bool = True
    non_commercial: bool = False
    no_derivatives: bool = False
    share_alike: bool = False

    def said(self) -> str:
        """Name the conditions in words for a table's cell."""
        parts = {"credit": self.credit, "not commercial": self.non_commercial, "no changed copies": self.no_derivatives,
                 "share alike": self.share_alike}  # fmt: skip
        return ", ".join(name for name, holds in parts.items() if holds) or "none"


# Summaries: choosealicense.com and creativecommons.org/licenses; what they call attribution or notice is `credit`.
_KNOWN = {
    "mit": Terms(),
    "apache-2.0": Terms(),
    "bsd-2-clause": Terms(),
    "bsd-3-clause": Terms(),
    "isc": Terms(),
    "odc-by": Terms(),
    "odbl": Terms(share_alike=True),
    "pddl": Terms(credit=False),
    "cc0-1.0": Terms(credit=False),
    "unlicense": Terms(credit=False),
    "public-domain": Terms(credit=False),
    "cdla-permissive-2.0": Terms(),
    "gpl-3.0": Terms(share_alike=True),
}
_CREATIVE_COMMONS = re.compile(r"cc-by(?P<nc>-nc)?(?P<rest>-sa|-nd)?(-[1-4]\.\d)?(-[a-z]{2,4})?")


def terms(licence: str | None) -> Terms | None:
    """Return what a licence of this name asks for, or None where the name is missing or unknown."""
    name = "-".join(re.split(r"[\s_-]+", (licence or "").strip().lower().split("(")[0].strip()))
    if name in _KNOWN:
        return _KNOWN[name]
    found = _CREATIVE_COMMONS.fullmatch(name)
    if found is None:
        return None
    rest = found["rest"]
    return Terms(non_commercial=bool(found["nc"]), no_derivatives=rest == "-nd", share_alike=rest == "-sa")


def warnings(name: str, licence: str | None) -> list[str]:
    """Say in one sentence each what the licence of a training source forbids, or that nobody can tell."""
    if not licence:
        return [f"{name}: no licence is stated; nothing says that its rows may be used"]
    found = terms(licence)
    if found is None:
        return [f"{name}: the terms of {licence!r} are not known here; read them before you use what is trained on it"]
    said = []
    if found.non_commercial:
        said.append(f"{name}: {licence} does not allow commercial use")
    if found.no_derivatives:
        said.append(f"{name}: {licence} does not allow changed copies to be shared, and rows are changed here")
    if found.share_alike:
        said.append(f"{name}: {licence} asks that what is adapted from it be shared under the same licence")
    return said
