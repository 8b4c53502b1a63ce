"""Which files of a class folder are taken for photos, and which names are no one's business."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
_IGNORED = frozenset({"__macosx", "thumbs.db"})  # left by macOS and Windows


def is_ignored(name: str) -> bool:
    """Whether a file or folder of this name is passed over without a word."""
    return name.startswith(".") or name.lower() in _IGNORED
