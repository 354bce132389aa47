"""What a photograph's owner wants kept beside the pixels: colour profile, resolution, who took it, when and where."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from invertible.data.pictures import BROKEN, EXIF_ORIENTATION

if TYPE_CHECKING:
    from PIL.Image import Exif, Image

# Title, maker, camera, software, date, artist, copyright. Not kept: orientation (pictures are written upright), and
# all that describes the old file: its strips, sizes and thumbnail.
KEPT = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298)
SUB_DIRECTORIES = (0x8769, 0x8825)  # exposure, and place
POINTERS_AND_SIZES = (0xA002, 0xA003, 0xA005)


@dataclass(frozen=True)
class Metadata:
    """What is carried from one file to the next.

    Args:
        icc: The colour profile.
        exif: EXIF data without orientation.
        dpi: Pixels per inch, across and down.
    """

    icc: bytes | None = None
    exif: bytes | None = None
    dpi: tuple[float, float] | None = None

    @property
    def texts(self) -> dict[int, str]:
        """What a TIFF file can hold of the EXIF data: texts by tag."""
        from PIL import Image

        exif = Image.Exif()
        exif.load(self.exif or b"")
        return {tag: value for tag, value in exif.items() if tag in KEPT and isinstance(value, str) and value.isascii()}


def read_metadata(picture: Image) -> tuple[Metadata, int, list[str]]:
    """Read what is carried over.

    Args:
        picture: Opened.

    Returns:
        What was found; the orientation, 1 to 8; and notes on what was not readable. A damaged EXIF is no reason to
        refuse a photograph.
    """
    icc, notes = picture.info.get("icc_profile") or None, []
    if icc is not None and picture.mode == "CMYK":
        icc, notes = None, ["converted from CMYK to RGB without its colour profile"]
    exif, orientation = None, 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # how Pillow says that EXIF data are damaged
            found = picture.getexif()
            orientation = found.get(EXIF_ORIENTATION, 1)
            exif = _kept(found)
    except (*BROKEN, UserWarning) as error:
        notes = [*notes, f"its EXIF data are damaged and were left out ({error})"]
    dpi = _dpi(picture.info.get("dpi"))
    return Metadata(icc, exif, dpi), orientation if orientation in range(1, 9) else 1, notes


def _dpi(found: object) -> tuple[float, float] | None:
    if not isinstance(found, tuple) or len(found) != 2:
        return None
    across, down = float(found[0]), float(found[1])
    return (across, down) if across > 1 and down > 1 else None


def _kept(exif: Exif) -> bytes | None:
    from PIL import Image

    new = Image.Exif()
    for tag in KEPT:
        if tag in exif:
            new[tag] = exif[tag]
    for directory in SUB_DIRECTORIES:
        found = {tag: value for tag, value in exif.get_ifd(directory).items() if tag not in POINTERS_AND_SIZES}
        if found:
            new[directory] = found
    return new.tobytes() if len(new) else None
