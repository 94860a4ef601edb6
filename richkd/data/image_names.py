"""Names of image files and folders; without any library, for programs that do without torch."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
# Files and folders that systems put beside the user's files, besides hidden ones (".name").
LITTER = ("@eadir", "__macosx", "desktop.ini", "thumbs.db")


def hidden(name: str) -> bool:
    """Whether a file or a folder of this name is passed over: hidden, or put there by a system."""
    return name.startswith(".") or name.lower() in LITTER
