"""Make convert/data/images: small pieces of photographs that the vectors of images are compared on.

Needs a folder with the photographs of scikit-image (src/_skimage2/data, commit
cd0a3d22b9f359f05618d75d5c7a29b91b4951ca). Command, from the repository root:

    python tests/reference/make_images.py PHOTOGRAPHS_FOLDER
"""

import argparse
from pathlib import Path

from PIL import Image

OUTPUT = Path(__file__).resolve().parents[2] / "convert" / "data" / "images"
JPEG_QUALITY = 85
# name, photograph, the region (left, upper, right, lower) and the size (width, height) it is scaled to.
# Sizes vary, as the tower's windows are cut in another way for each.
PIECES = (
    ("astronaut.jpg", "astronaut.png", (120, 0, 344, 224), (224, 224)),
    ("shuttle.jpg", "astronaut.png", (360, 60, 512, 364), (112, 224)),
    ("camera.jpg", "camera.png", (130, 60, 410, 284), (280, 224)),
    ("coat.png", "camera.png", (0, 380, 112, 492), (56, 56)),
    ("cat.jpg", "chelsea.png", (90, 20, 370, 244), (280, 224)),
    ("cat-eye.jpg", "chelsea.png", (150, 80, 262, 164), (112, 84)),
    ("coffee.jpg", "coffee.png", (120, 20, 540, 380), (196, 168)),
    ("table.jpg", "coffee.png", (420, 120, 588, 288), (84, 84)),
    ("flag.jpg", "astronaut.png", (0, 60, 150, 360), (84, 168)),
    ("rocket.jpg", "rocket.jpg", (240, 0, 400, 427), (84, 224)),
    ("galaxies.jpg", "hubble_deep_field.jpg", (300, 300, 748, 636), (224, 168)),
    ("retina.jpg", "retina.jpg", (0, 0, 1411, 1411), (140, 140)),
    ("horse.png", "horse.png", (0, 0, 400, 328), (168, 140)),
    ("bricks.jpg", "brick.png", (0, 0, 400, 200), (200, 100)),
    ("grass.jpg", "grass.png", (0, 0, 224, 224), (112, 112)),
    ("gravel.png", "gravel.png", (100, 100, 196, 196), (64, 64)),
)


def main() -> None:
    """Cut the pieces out, scale them and write them without metadata."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("photographs", type=Path, help="the folder that holds astronaut.png and the others")
    photographs = parser.parse_args().photographs
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for name, photograph, region, size in PIECES:
        with Image.open(photographs / photograph) as image:
            visible = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        piece = visible.convert("RGB").resize(size, Image.Resampling.LANCZOS, box=region)
        piece.save(OUTPUT / name, quality=JPEG_QUALITY, optimize=True)
    print(f"{len(PIECES)} images, {sum(path.stat().st_size for path in OUTPUT.iterdir())} bytes")


if __name__ == "__main__":
    main()
