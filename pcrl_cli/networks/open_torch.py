"""Opens a torch file that nobody vouches for; run as a script, in a process of its own, by `networks/untrusted.py`.

    python open_torch.py FILE FOLDER       writes FOLDER/tensors.safetensors and FOLDER/facts.json, or FOLDER/error.json

Only what torch's restricted unpickler builds is built: tensors, containers, and `argparse.Namespace`, which is a bag of
names. Memory, time and the size of what it writes are limited, whatever the file asks for. It imports nothing of pcrl.
"""

import argparse
import json
import math
import pickle
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

PLAIN = (str, int, float, bool, type(None))
MEGABYTE = 1 << 20


class Unsafe(Exception):
    """What is in the file is not what a file of weights holds."""


def limit(size: int) -> None:
    """Memory, processor time and output of this process from here on, by the file's size in bytes."""
    try:
        import resource
    except ImportError:  # not a Unix: the parent's patience is the only limit
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    limits = {
        resource.RLIMIT_AS: pages * resource.getpagesize() + 4 * size + 512 * MEGABYTE if pages else 0,
        resource.RLIMIT_CPU: 120 + size // (20 * MEGABYTE),
        resource.RLIMIT_FSIZE: 2 * size + 16 * MEGABYTE,
        resource.RLIMIT_CORE: 0,
    }
    for which, most in limits.items():
        hard = resource.getrlimit(which)[1]
        if most or which == resource.RLIMIT_CORE:
            resource.setrlimit(which, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def check_archive(path: Path) -> bool:
    """Whether it is a zip archive; one as torch writes it: nothing compressed, no name that leads elsewhere.

    Raises:
        Unsafe: it is another kind of archive.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, struct.error, NotImplementedError) as error:
        raise Unsafe(f"is a torn archive ({error})") from None
    for entry in entries:
        parts = entry.filename.replace("\\", "/").split("/")
        if ".." in parts or entry.filename.startswith(("/", "\\")) or ":" in parts[0]:
            raise Unsafe(f"holds an entry {entry.filename[:60]!r} that leads out of it")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise Unsafe("is compressed, which torch's files never are")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise Unsafe("promises more bytes than it has")
    return True


def tensors_of(content: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The named tensors, and plain facts about the rest.

    Raises:
        Unsafe: there are no named tensors.
    """
    import torch

    top = sorted(map(str, content)) if isinstance(content, dict) else []
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise Unsafe("holds no dictionary of tensors")
    tensors = {str(k): v for k, v in state.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        raise Unsafe("holds no named tensors")
    options = content.get("opt") if "state_dict" in content else None
    options = vars(options) if isinstance(options, argparse.Namespace) else options if isinstance(options, dict) else {}
    facts = {
        "top": top if "state_dict" in content else [],
        "epoch": content.get("epoch") if isinstance(content.get("epoch"), int) else None,
        "options": {str(k): _plain(v) for k, v in options.items()},
        "left_out": sorted(str(k) for k, v in state.items() if not isinstance(v, torch.Tensor)),
    }
    return tensors, facts


def _plain(value: Any) -> Any:
    """JSON values as they are, anything else by its kind."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, list | tuple) and len(value) < 100:
        return [_plain(v) for v in value]
    return f"<{type(value).__name__}>"


def open_file(path: Path, folder: Path) -> None:
    """Reads the file and writes what it holds as plain files.

    Raises:
        Unsafe: it wants more than tensors, or is torn.
    """
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    zipped = check_archive(path)
    limit(path.stat().st_size)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = [word for line in str(error).splitlines() if "GLOBAL" in line for word in line.split() if "." in word]
        what = f" ({wanted[0][:60]})" if wanted else ""
        raise Unsafe(
            f"is no torch file, or holds more than tensors{what}, and was not opened, since a pickle can run code"
        ) from None
    except (MemoryError, RuntimeError, OSError) as error:
        raise Unsafe(f"is torn, or asks for more memory than it has bytes ({_first_line(error)})") from None
    except Exception as error:  # a torn stream fails in every way there is
        raise Unsafe(f"is no sound torch file ({_first_line(error)})") from None
    tensors, facts = tensors_of(content)
    if sum(t.numel() * t.element_size() for t in tensors.values()) > 4 * path.stat().st_size:
        raise Unsafe("promises more values than it has bytes")  # a tensor of stride 0
    plain = {k: t.detach().to_dense().contiguous().clone() for k, t in tensors.items()}
    save_file(plain, folder / "tensors.safetensors")
    facts["format"] = "zip" if zipped else "legacy"
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:80] if str(error) else type(error).__name__


def main() -> None:
    path, folder = map(Path, sys.argv[1:3])
    try:
        open_file(path, folder)
    except Unsafe as error:
        (folder / "error.json").write_text(json.dumps(str(error)), encoding="utf-8")
    except MemoryError:
        (folder / "error.json").write_text(json.dumps("asks for more memory than it has bytes"), encoding="utf-8")


if __name__ == "__main__":
    main()
