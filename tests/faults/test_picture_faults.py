"""Pictures that are turned, damaged, of unusual kinds, oddly named, linked in circles, or cannot be written."""

import io
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from faults import SilentlyWrong, WorkLost, WrittenOutside, fault, files_in, refused, start
from PIL import Image, ImageCms
from video_files import save_video

from darkening import apply, preview
from media.pictures import decode_picture

DAY = ("--night.source", "day", "--workers", 0, "--device", "cpu")
GAMMA = ("--night.source", "gamma", "--workers", 0, "--device", "cpu")
SETTINGS = Path(apply.SETTINGS_FILE)


def noise(height=20, width=24, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def encoded(kind, picture=None, **options):
    file = io.BytesIO()
    (picture or Image.fromarray(noise())).save(file, kind, **options)
    return file.getvalue()


def put(folder, **files):
    """Write files, by their names with __ for the dot, beside a good picture."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {"good__png": encoded("png"), **files}.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    return folder


def darken(source, output, *flags):
    return start(apply, "--input", source, "--output", output, *(flags or DAY))


def whole(output):
    """Nothing half written: every picture can be read, and no temporary file is there."""
    for file in Path(output).rglob("*"):
        if file.name.endswith(".tmp"):
            raise WorkLost(f"{file} was left")
        if file.is_file() and file.suffix in (".png", ".jpg", ".webp", ".tif", ".bmp", ".ppm"):
            try:
                decode_picture(file)
            except Exception as error:
                raise WorkLost(f"{file} is not whole: {error}") from error


def named_or_done(said, file, output):
    """A file is named and not written, or written; the good one beside it is done. Whether it was done."""
    made = Path(output, file.name).is_file()
    if (str(file) in said.out) == made:
        raise SilentlyWrong(f"{file}: made {made}, told: {said.out}")
    if not (Path(output) / "good.png").is_file():
        raise WorkLost("the good picture is not done")
    assert said.code == (0 if made else 1), said
    whole(output)
    return made


# 1. Turned pictures

RATIONAL = struct.pack(">II", 0, 0)
ENTRIES = {  # tag, kind and content of one entry; GPS entries are in a directory of their own
    "a kind of bytes": (0x0106, 3, b"\0\7\0\0"),
    "width in words": (0x0100, 2, b"wide\0\0"),
    "name as a rational": (0x010F, 5, RATIONAL),
    "position as words": (0x8825, 2, b"north\0"),
    "position 0/0": (0x8825, 4, None),
    "unknown kind": (0x8769, 16, b"\0\0\0\1"),
    "resolution in words": (0x011A, 2, b"high\0\0"),
    "more than there is": (0x010F, 2, b"x" * 5),
}
TURNS = {
    **{6: lambda a: np.rot90(a, -1), 1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2)},
    **{5: lambda a: a.swapaxes(0, 1), 4: np.flipud},
    **{7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: np.rot90},
}


def exif(orientation, name):
    tag, kind, content = ENTRIES[name]
    if content is None:  # a directory of positions behind this one
        inner = struct.pack(">HHHII", 1, 2, 5, 3, 38 + 18) + struct.pack(">I", 0) + 3 * RATIONAL
        value, content = struct.pack(">I", 38), inner
        count = 1
    else:
        count = 9999 if name == "more than there is" else len(content) // {2: 1, 3: 2, 5: 8, 16: 4}[kind]
        value = content if len(content) == 4 else struct.pack(">I", 38)
    odd = struct.pack(">HHI", tag, kind, count) + value
    upright = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    return b"Exif\0\0MM\0*\0\0\0\10\0\2" + b"".join(sorted([upright, odd])) + b"\0\0\0\0" + content


@fault(
    *("pictures", "a photo turned by EXIF, with one entry of an odd type", "upright, pixel by pixel"),
    trials=[(turn, name, ("jpg", "png", "webp")[turn % 3]) for turn in TURNS for name in ENTRIES],
)
def test_turned(trial, tmp_path):
    turn, name, ending = trial
    pixels = noise(16, 40)
    pixels[:8, :20] //= 8
    kind = {"jpg": "jpeg"}.get(ending, ending)
    content = encoded(kind, Image.fromarray(pixels), exif=exif(turn, name))
    source = put(tmp_path / "in", **{f"x__{ending}": content})
    said = darken(source / f"x.{ending}", tmp_path / "x.png")
    assert said.code == 0, said
    with Image.open(source / f"x.{ending}") as stored, Image.open(tmp_path / "x.png") as made:
        expected, found = TURNS[turn](np.asarray(stored.convert("RGB"))), np.asarray(made)
    if found.shape != expected.shape or (found != expected).any():
        raise SilentlyWrong(f"{found.shape}, expected {expected.shape}, or other pixels")


# 2. Damaged pictures

KINDS = {"jpg": "jpeg", "png": "png", "webp": "webp", "tif": "tiff", "bmp": "bmp", "ppm": "ppm"}


@fault(
    *("pictures", "a file cut at any byte", "named, the others done; exit code 1, or 0 with --skip-corrupt"),
    trials=[(ending, seed) for ending in KINDS for seed in range(8)],
)
def test_cut(trial, tmp_path, caplog):
    ending, seed = trial
    content = encoded(KINDS[ending])
    # Of the last bytes a decoder may need none.
    content = content[: random.Random(str(trial)).randrange(int(0.9 * len(content)))]
    source = put(tmp_path / "in", **{f"x__{ending}": content})
    said = darken(source, tmp_path / "out")
    if named_or_done(said, source / f"x.{ending}", tmp_path / "out"):
        raise SilentlyWrong("a picture that is cut was darkened")
    assert "1 of 2 files" in said.error and "--skip-corrupt" in said.out
    said = darken(source, tmp_path / "out", *DAY, "--skip-corrupt")
    assert said.code == 0 and str(source / f"x.{ending}") in caplog.text, said


@fault(
    *("pictures", "one to eight bytes are others", "named, or darkened as it decodes; the others done"),
    trials=[(ending, seed) for ending in KINDS for seed in range(12)],
)
def test_changed(trial, tmp_path):
    ending, seed = trial
    drawn, content = random.Random(str(trial)), bytearray(encoded(KINDS[ending]))
    for _ in range(drawn.choice([1, 1, 2, 8])):
        content[drawn.randrange(min(len(content), drawn.choice([64, 10**6])))] = drawn.randrange(256)
    source = put(tmp_path / "in", **{f"x__{ending}": bytes(content)})
    named_or_done(darken(source, tmp_path / "out"), source / f"x.{ending}", tmp_path / "out")


# 3. and 4. Unusual pictures, and what is told of them

PICTURE = Image.fromarray(noise())
GREY16 = (np.arange(480, dtype=np.uint16) * 137).reshape(20, 24)
P3 = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def with_alpha(picture, alpha=77):
    picture = picture.copy()
    picture.putalpha(alpha)
    return picture


def animation(kind, **options):
    return encoded(kind, save_all=True, append_images=[PICTURE.rotate(90)], **options)


# Name, content, how far its pixels may be from PICTURE's in 8-bit RGB (None: only its size is compared), what is told.
UNUSUAL = {
    "colours with transparency": ("x.png", lambda: encoded("png", with_alpha(PICTURE)), PICTURE, "transparency of 1"),
    "grey": ("x.png", lambda: encoded("png", PICTURE.convert("L")), PICTURE.convert("L"), ""),
    "grey of 16 bits": ("x.png", lambda: encoded("png", Image.fromarray(GREY16)), GREY16, "bits beyond 8 of 1 file"),
    "grey of 16 bits, TIFF": ("x.tif", lambda: encoded("tiff", Image.fromarray(GREY16)), GREY16, "bits beyond 8"),
    "CMYK, TIFF": ("x.tif", lambda: encoded("tiff", PICTURE.convert("CMYK")), PICTURE.convert("CMYK"), ""),
    "CMYK, JPEG": ("x.jpg", lambda: encoded("jpeg", PICTURE.convert("CMYK")), None, ""),
    "palette": ("x.png", lambda: encoded("png", PICTURE.convert("P")), PICTURE.convert("P"), ""),
    "palette with transparency": (
        *("x.png", lambda: encoded("png", PICTURE.convert("P"), transparency=3), PICTURE.convert("P")),
        "transparency of 1 file",
    ),
    "palette with degrees of transparency": (
        *("x.png", lambda: encoded("png", PICTURE.convert("P"), transparency=bytes(range(256)))),
        *(PICTURE.convert("P"), "transparency of 1 file"),
    ),
    "grey with transparency": (
        *("x.png", lambda: encoded("png", with_alpha(PICTURE.convert("L"))), PICTURE.convert("L")),
        "transparency of 1 file",
    ),
    "one bit": ("x.png", lambda: encoded("png", PICTURE.convert("1")), PICTURE.convert("1"), ""),
    "a colour profile": ("x.png", lambda: encoded("png", icc_profile=P3), PICTURE, "colour profiles (ICC) of 1 file"),
    "a profile that is rubbish": ("x.png", lambda: encoded("png", icc_profile=b"x" * 50), PICTURE, "colour profiles"),
    "EXIF entries": ("x.png", lambda: encoded("png", exif=exif(1, "name as a rational")), PICTURE, "EXIF entries of"),
    "32 bits": ("x.tif", lambda: encoded("tiff", Image.fromarray(GREY16.astype(np.int32))), None, "32 bits and no"),
    "numbers with a point": (
        "x.tif",
        lambda: encoded("tiff", Image.fromarray(np.ones((20, 24), "f4"))),
        None,
        "32 bit",
    ),
    "PNG called .jpg": ("x.jpg", lambda: encoded("png"), None, ""),
    "JPEG called .png": ("x.png", lambda: encoded("jpeg"), None, ""),
    "GIF called .png": ("x.png", lambda: encoded("gif"), None, ""),
    "AVIF called .jpg": ("x.jpg", lambda: encoded("avif"), None, ""),
    "a page of the web": ("x.jpg", lambda: b"<!DOCTYPE html><html></html>", None, "is no picture, or a damaged one"),
    "no bytes": ("x.jpg", lambda: b"", None, "is no picture, or a damaged one"),
    "one pixel": ("x.png", lambda: encoded("png", PICTURE.crop((3, 3, 4, 4))), PICTURE.crop((3, 3, 4, 4)), ""),
    "one row": ("x.png", lambda: encoded("png", PICTURE.crop((0, 3, 24, 4))), PICTURE.crop((0, 3, 24, 4)), ""),
    "one column": ("x.png", lambda: encoded("png", PICTURE.crop((3, 0, 4, 20))), PICTURE.crop((3, 0, 4, 20)), ""),
    "two pages": ("x.tif", lambda: animation("tiff"), PICTURE, "further pages or frames of 1 file"),
    "in motion, PNG": ("x.png", lambda: animation("png"), PICTURE, "further pages or frames of 1 file"),
    "in motion, WebP": ("x.webp", lambda: animation("webp", lossless=True), None, "further pages or frames of 1 file"),
    "two in one JPEG": ("x.jpg", lambda: animation("mpo"), None, "further pages or frames of 1 file"),
    "16,777,216 x 2 pixels": (
        *("x.bmp", lambda: encoded("bmp").replace(b"\x18\0\0\0\x14", b"\x18\0\0\1\x14"), None, "exceeds limit"),
    ),
    "too wide for its ending": (
        *("x.jpg", lambda: encoded("png", Image.new("RGB", (66000, 2))), None, "cannot be written as jpeg of 66000x2"),
    ),
    "too wide for WebP": (
        *("x.webp", lambda: encoded("png", Image.new("RGB", (17000, 2))), None, "cannot be written as webp of 17000x2"),
    ),
}
REFUSED = ("32 bits", "numbers with a point", "a page of the web", "no bytes", "too wide", "16,777,216")


@fault(
    *("pictures", "of an unusual kind, by what is in the file", "right, with what is not kept told; or named"),
    trials=[(name, source) for name in UNUSUAL for source in ("day", "gamma", "learned")],
)
def test_unusual(trial, tmp_path, caplog):
    name, night = trial
    file, make, expected, told = UNUSUAL[name]
    source = put(tmp_path / "in", **{file.replace(".", "__"): make()})
    said = darken(source, tmp_path / "out", "--night.source", night, "--workers", 0, "--device", "cpu")
    text = said.out + caplog.text
    done = named_or_done(said._replace(out=text), source / file, tmp_path / "out")
    if done != (not name.startswith(REFUSED)) or told not in text:
        raise SilentlyWrong(f"done: {done}, told: {text}")
    if done and not told and "not kept" in text:
        raise SilentlyWrong(text)
    if done and expected is not None and night == "day":
        if isinstance(expected, np.ndarray):  # of 16 bits
            expected = Image.fromarray((expected // 257).astype(np.uint8))
        difference = np.asarray(expected.convert("RGB")).astype(int) - decode_picture(tmp_path / "out" / file).permute(
            1, 2, 0
        ).numpy().astype(int)
        if difference.any():
            raise SilentlyWrong(f"other pixels, by {abs(difference).max()}")


FOREIGN = {
    "2 .heic, 1 .gif": ("a.heic", "b.HEIC", "c.gif"),
    "1 .pgm": ("x.pgm",),
    "3 without an ending": ("a", "b", "README"),
    "1 .mpg, 1 .wmv": ("a.mpg", "b.wmv"),
    "1 .txt and 2 links that lead to no file": ("a.txt", "broken.jpg>", "again.png>"),
    "1 link that leads to no file": ("broken.jpg>",),
    "2 others": tuple(f"{letter}.{letter}" for letter in "abcdefghij"),
}


@fault(*("pictures", "files that are not read beside those that are", "told once, in one line"), trials=FOREIGN)
def test_foreign(trial, tmp_path, caplog):
    source = put(tmp_path / "in")
    for name in FOREIGN[trial]:
        if name.endswith(">"):
            (source / name[:-1]).symlink_to("nowhere")
        else:
            (source / name).write_bytes(b"foreign")
    said = darken(source, tmp_path / "out")
    lines = [line for line in caplog.messages if line.startswith("skipped")]
    if said.code or len(lines) != 1 or not lines[0].endswith(trial):
        raise SilentlyWrong(f"{lines} {said}")
    (source / "good.png").unlink()
    refused(darken(source, tmp_path / "other"), "no pictures or videos", "skipped")


# 5. Names

NAMES = {
    "not UTF-8": b"caf\xe9",
    "250 bytes": b"n" * 246,
    "255 bytes": b"n" * 251,
    "colon": b"12:30",
    "like a protocol": b"http:",
    "leading dash": b"-rf",
    "new line": b"two\nlines",
    "control characters": b"\x1b[31mred\x07",
    "dollar": b"$(touch x)",
    "percent": b"%03d",
    "percent s": b"%s%n",
    "spaces": b" a  b ",
    "emoji": "🌙🏽‍🚀".encode(),
    "brackets": b"[a]*?",
    "backslash": b"a\\nb",
    "exposure": b"x@0.05",
    "right to left": "ليل".encode(),
}


@fault(
    *("pictures", "names that are not text, too long, or mean something to a program", "read and written"),
    trials=[(name, how) for name in NAMES for how in ("folder", "file", "broken", "below")],
)
def test_names(trial, tmp_path, monkeypatch):
    name, how = trial
    stem = os.fsdecode(NAMES[name])
    source = put(tmp_path / "in")
    file = source / f"{stem}.png"
    if how == "below":
        file = source / os.fsdecode(NAMES[name][:250]) / "x.png"
        file.parent.mkdir()
    file.write_bytes(b"" if how == "broken" else encoded("png"))
    if how == "file":
        monkeypatch.chdir(source)
        source, target = Path(file.name), tmp_path / "out" / file.name
        said = start(apply, f"--input={source}", f"--output={target.parent}", *DAY)
    else:
        target = tmp_path / "out" / file.relative_to(source)
        said = darken(source, tmp_path / "out")
    if how == "broken":
        assert said.code == 1 and not target.exists(), said
        lines = said.out[said.out.index("error:") :].splitlines()
        if len(lines) != 3 or any(character in said.out for character in "\x1b\x07"):
            raise SilentlyWrong(f"more than a line a file: {lines}")
    elif said.code or not target.is_file():
        raise SilentlyWrong(str(said))
    whole(tmp_path / "out")


@fault(
    *("pictures", "--exposures makes a name longer than the disk takes", "that file named, the others done"),
    trials=[200, 245, 246, 247, 248, 251],
)
def test_long(trial, tmp_path):
    source = put(tmp_path / "in")
    (source / f"{'n' * trial}.png").write_bytes(encoded("png"))
    said = darken(source, tmp_path / "out", *GAMMA, "--exposures", 0.025, 0.1)
    made = {file.name[-9:] for file in (tmp_path / "out").iterdir()}
    fits, shorter_fits = (trial + len(mark) <= 255 for mark in ("@0.025.png", "@0.1.png"))
    expected = {"d@0.1.png", "0.025.png"} | ({"n@0.1.png"} if shorter_fits else set())
    if said.code != (0 if fits else 1) or made - {SETTINGS.name[-9:]} != expected:
        raise SilentlyWrong(f"{said} {made}")
    assert fits or "File name too long" in said.out
    whole(tmp_path / "out")


# 6. Links

LINKS = {  # link below in/, and where it leads
    "to its own folder": {"a/loop": "."},
    "to its parent": {"a/up": ".."},
    "two to their parents": {"a/up": "..", "b/up": ".."},
    "to each other": {"a/b": "../b", "b/a": "../a"},
    "to itself": {"a/self": "self"},
    "to nothing": {"a/nothing": "nowhere", "b/nothing.png": "nowhere.png"},
    "out": {"a/out": "../../elsewhere"},
    "out, twice": {"a/out": "../../elsewhere", "b/out": "../../elsewhere"},
    "to above the input": {"a/above": "../.."},
    "to the output": {"a/made": "../../out"},
    "to a picture": {"a/link.png": "../b/x.png"},
}


@fault(*("pictures", "links below the folder, by where they lead", "each folder once; again: no change"), trials=LINKS)
def test_links(trial, tmp_path):
    source = tmp_path / "in"
    for name in ("a", "b", "../elsewhere"):
        put(source / name, x__png=encoded("png"))
    for link, where in LINKS[trial].items():
        (source / link).symlink_to(where)
    expected = {Path(name, file) for name in "ab" for file in ("x.png", "good.png")}
    if trial.startswith("out"):
        expected |= {Path("a/out", file) for file in ("x.png", "good.png")}
    elif trial == "to above the input":
        expected |= {Path("a/above/elsewhere", file) for file in ("x.png", "good.png")}
    elif trial == "to a picture":
        expected |= {Path("a/link.png")}
    for _ in range(2):
        said = darken(source, tmp_path / "out")
        assert said.code == 0, said
        found = set(files_in(tmp_path / "out")) - {SETTINGS}
        if found != expected:
            raise SilentlyWrong(f"{sorted(found ^ expected)}")


# 8. Where pictures come from and go to, and runs that are killed

PLACES = {  # input, output, exit code, words of the error
    "one file onto itself": ("in/good.png", "in/good.png", 2, "overwrite"),
    "output is a file": ("in", "in/good.png", 2, "lies inside it"),
    "no picture": ("in/file.txt", "out", 2, "of a kind that is not read"),
    "output is a file elsewhere": ("in", "file", 2, "is a file"),
    "output below a file": ("in", "file/out", 2, "cannot be made"),
    "the input": ("in", "in", 2, "is the input"),
    "the input by a link": ("in", "link", 2, "is the input"),
    "read-only": ("in", "/proc/x", 2, "cannot be made"),
    "a device": ("in", "/dev/null", 2, "is a file"),
    "no input": ("nothing", "out", 2, "no file or folder"),
    "an empty folder": ("empty", "out", 2, "no pictures or videos"),
    "one file into its folder": ("in/good.png", "in", 2, "overwrite"),
    "one file to another kind": ("in/good.png", "x.mp4", 2, "expected a folder or a picture"),
    "inside the input": ("in", "in/dark", 2, "lies inside it"),
    "one file to a name of no kind": ("in/good.png", "x.xyz", 2, "expected a folder or a picture"),
    "one file, read-only": ("in/good.png", "/proc/x.png", 1, "/proc/x.png"),
    "settings that are no JSON": ("in", "odd", 2, ".darkening.json"),
    "the input inside the output": ("in/in", "in", 2, "overwrite"),
}


@fault(
    *("pictures", "an input or output that cannot work", "refused; nothing is written"),
    trials=[*PLACES, *(f"settings {text}" for text in ("", "[1", "[]", '"x"', "3", "null", "{}"))],
)
def test_places(trial, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(Path("in"), file__txt=b"x")
    (Path("in/in")).mkdir()
    put(Path("in/in/in"))  # which --output in would put into in/in
    Path("empty").mkdir()
    Path("file").touch()
    Path("link").symlink_to("in")
    Path("odd").mkdir()
    settings = trial.removeprefix("settings ") if trial.startswith("settings ") and trial not in PLACES else "{"
    (Path("odd") / SETTINGS).write_text(settings)
    source, output, code, words = PLACES.get(trial, ("in", "odd", 2, "odd"))
    before = files_in(tmp_path)
    refused(darken(source, output), words, code=code)
    if files_in(tmp_path) != before:
        raise WrittenOutside(str(set(files_in(tmp_path)) ^ set(before)))


@fault(*("pictures", "a target that is a folder", "named; the others done"), trials=["folder"])
def test_target(trial, tmp_path):
    source = put(tmp_path / "in", x__png=encoded("png"))
    (tmp_path / "out" / "x.png").mkdir(parents=True)
    said = darken(source, tmp_path / "out")
    if said.code != 1 or str(source / "x.png") not in said.out or not (tmp_path / "out" / "good.png").is_file():
        raise SilentlyWrong(str(said))


@fault(
    *("pictures and videos", "the same command again", "nothing is done, no byte changes"),
    trials=[(night, several) for night in ("day", "gamma", "learned", "short-exposure") for several in (0, 1)],
)
def test_again(trial, tmp_path):
    night, several = trial
    source = put(tmp_path / "in", x__jpg=encoded("jpeg"))
    save_video(source / "v.mp4", frames=3)
    flags = ["--night.source", night, "--workers", 0, "--device", "cpu"]
    if several and night != "day":
        flags += ["--exposures", 0.05, 0.2]
    assert darken(source, tmp_path / "out", *flags).code == 0
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in (tmp_path / "out").iterdir()}
    said = darken(source, tmp_path / "out", *flags)
    after = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in (tmp_path / "out").iterdir()}
    if said.code or before != after:
        raise WorkLost(str(said))


@fault(
    *(
        "pictures and videos",
        "kill -9 at a random moment, then the same command",
        "as if never killed, nothing left",
    ),
    trials=5,
)
def test_killed(trial, tmp_path):
    source = tmp_path / "in"
    for number in range(30):
        put(source / f"{number % 3}", **{f"{number}__png": encoded("png", Image.fromarray(noise(80, 90, number)))})
    save_video(source / "v.mp4", frames=60, height=96, width=128)
    assert darken(source, tmp_path / "whole", *GAMMA).code == 0
    command = [sys.executable, "-m", "darkening.apply", "--input", source, "--output", tmp_path / "out", *GAMMA]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL)
    drawn = random.Random(trial)
    begun, until = tmp_path / "out" / SETTINGS, drawn.choice([0, 3, 20, 33])
    while process.poll() is None and not begun.exists():
        time.sleep(0.002)
    while process.poll() is None and len(list((tmp_path / "out").rglob("*.*"))) < until:
        time.sleep(0.0005)
    time.sleep(drawn.random() / 50)
    process.send_signal(signal.SIGKILL)
    process.wait()
    said = darken(source, tmp_path / "out", *GAMMA)
    assert said.code == 0, said
    whole(tmp_path / "out")
    first, second = files_in(tmp_path / "whole"), files_in(tmp_path / "out")
    if first != second:
        raise WorkLost(str([name for name in first.keys() | second.keys() if first.get(name) != second.get(name)]))


# 9. No room


@pytest.fixture
def limit():
    """Gives what limits the size of files of this process until the test ends."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@fault(
    *("pictures", "no room for a whole file", "named, exit code 1; no half file, smaller ones done"),
    trials=[(ending, seed) for ending in KINDS for seed in range(3)],
)
def test_no_room(trial, tmp_path, limit):
    ending, _ = trial
    source = put(tmp_path / "in", **{f"x__{ending}": encoded(KINDS[ending], Image.fromarray(noise(90, 100)))})
    limit(random.Random(str(trial)).randrange(2500, 5000))
    said = darken(source, tmp_path / "out")
    limit(10**9)
    if named_or_done(said, source / f"x.{ending}", tmp_path / "out"):
        raise SilentlyWrong("a file of more than the limit was written")
    assert "File too large" in said.out and "free some space" not in said.out, said
    again = darken(source, tmp_path / "out")
    assert again.code == 0 and (tmp_path / "out" / f"x.{ending}").is_file(), again


@fault(
    *(
        "pictures",
        "a contact sheet of odd pictures, or onto an odd place",
        "made, of the others where one is broken, or refused in one line",
    ),
    trials=["broken", "one row", "one pixel", "onto the input", "folder", "read-only", "again", "no pictures", "names"],
)
def test_sheet(trial, tmp_path):
    source, output = tmp_path / "in", tmp_path / "sheet.png"
    pieces = {"one pixel": (3, 3, 4, 4), "one row": (0, 3, 24, 4)}
    put(source, x__png=b"" if trial == "broken" else encoded("png", PICTURE.crop(pieces.get(trial, (0, 0, 24, 20)))))
    code, words = 0, ""
    if trial == "broken":
        code, words = 1, "x.png"
    elif trial == "onto the input":
        source = output = source / "x.png"
        code, words = 2, "overwrite"
    elif trial == "folder":
        output.mkdir()
        code, words = 2, "is a folder"
    elif trial == "read-only":
        output, code, words = Path("/proc/x.png"), 1, "/proc/x.png"
    elif trial == "no pictures":
        source = put(tmp_path / "none") / "sub"
        source.mkdir()
        code, words = 2, "no pictures"
    elif trial == "names":
        (source / os.fsdecode(b"caf\xe9\n%s.png")).write_bytes(encoded("png"))
    elif trial == "again":
        output = source / "sheet.png"
        assert start(preview, "--input", source, "--output", output, "--device", "cpu").code == 0
    before = output.read_bytes() if trial == "again" else b""
    said = start(preview, "--input", source, "--output", output, "--size", 160, "--device", "cpu")
    if said.code != code or words not in said.error:
        raise SilentlyWrong(str(said))
    assert output.is_file() == (code == 0 or trial in ("onto the input", "broken"))
    if trial == "again" and output.read_bytes() != before:
        raise SilentlyWrong("the sheet shows itself")
