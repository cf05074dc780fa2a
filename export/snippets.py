"""The program that lands beside an artefact: how to use it where dlzoo is not installed."""

from __future__ import annotations

import textwrap

_PROGRAM = '''"""Say what photos show:  python {program} {file} PHOTO...

Needs: pip install {packages}

{more}
"""

import json
import sys
{imports}


class Model:
    """A model of {file}'s kind; `about` tells its classes, size and preprocessing."""

    def __init__(self, path):
{load}

    def __call__(self, pixels):
        """Return probabilities (n, classes) of RGB images (n, size, size, 3) in 0..255."""
{ask}
{read}

if __name__ == "__main__":
    model = Model(sys.argv[1])
    batch = model.about["input"]["shape"][0] or 1  # a file may take just so many at a time
    for photo in sys.argv[2:]:
        answer, *_ = {call}
        best = answer.argsort()[::-1][:3]
        names = [f"{{model.about['classes'][i]}} {{answer[i]:.1%}}" for i in best]
        print(photo, *names, sep="  ")
'''

_READ = '''

def read(photo, about):
    """Return a photo as the model takes it, (1, size, size, 3): upright, alpha over white,
    the shorter side resized, the centre cut out; as in training, but for rounding."""
    from PIL import Image, ImageOps

    rule = about["preprocess"]
    size, short = rule["size"], round(rule["size"] / rule["crop"])
    image = Image.open(photo).copy()
    known = ("exif", "transparency")  # no XMP, which Pillow would turn it by, too
    image.info = {key: image.info[key] for key in known if key in image.info}
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":  # grey of more than 8 bits, which Pillow would clip
        grey = np.nan_to_num(np.asarray(image, "float64"), posinf=0, neginf=0).clip(0)
        whites = {"F": (1, 255, 65535), "I": (255, 65535)}.get(image.mode, (65535,))
        white = next((white for white in whites if grey.max() <= white), grey.max())
        image = Image.fromarray((grey * (255 / white) + 0.5).astype("uint8"))
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    k = min(image.size) // (2 * short)
    if k > 1:  # much too large: blocks are averaged first
        w, h = (side // k * k for side in image.size)
        x, y = (image.width - w) // 2, (image.height - h) // 2
        image = image.reduce(k, (x, y, x + w, y + h))
    side = min(image.size)
    image = image.resize(
        (image.width * short // side, image.height * short // side),
        {
            "nearest": Image.Resampling.NEAREST,
            "bilinear": Image.Resampling.BILINEAR,
            "bicubic": Image.Resampling.BICUBIC,
            "lanczos3": Image.Resampling.LANCZOS,
        }[rule["interpolation"]],
    )
    x, y = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((x, y, x + size, y + size)))[None]
'''


def snippet(*, file: str, packages: str, more: str, imports: str, load: str, ask: str) -> str:
    """Return the program `use_FORMAT.py`.

    Args:
        file: the usual name of the artefact. packages: for pip.
        more: lines of the docstring, as for Android, JavaScript and TF Serving.
        imports, load, ask: Python; `load` sets `self.about` from `path`, `ask` is the body of
            a method from `pixels` to probabilities.
    """
    name, _, suffix = file.rpartition(".")
    reads = "pillow" in packages  # else the model decodes files itself
    as_file = 'model([open(photo, "rb").read()] * batch)'
    return _PROGRAM.format(
        program=f"use_{suffix if name else file}.py",
        file=file,
        packages=packages,
        more=more.strip(),
        imports=imports[1:].rstrip(),
        load=textwrap.indent(textwrap.dedent(load).strip(), " " * 8),
        ask=textwrap.indent(textwrap.dedent(ask).strip(), " " * 8),
        read=_READ if reads else "",
        call="model(read(photo, model.about).repeat(batch, axis=0))" if reads else as_file,
    )
