"""Archives in the layout of CIFAR's, pickled as Python 2 or as later ones do."""

import io
import pickle
import struct
import tarfile


class Python2Pickler(pickle._Pickler):
    """Writes what Python 2 and its numpy wrote: every string is bytes, every flag a number."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, text):
        text = text.encode() if isinstance(text, str) else text
        size = len(text)
        self.write(b"U" + struct.pack("B", size) if size < 256 else b"T" + struct.pack("<i", size))
        self.write(text)

    def save_flag(self, flag):
        self.save_long(int(flag))

    dispatch[str] = dispatch[bytes] = save_string
    dispatch[bool] = save_flag


def dumps(content, protocol):
    if protocol > 2:
        return pickle.dumps(content, protocol)
    file = io.BytesIO()
    Python2Pickler(file, 2).dump(content)
    return file.getvalue().replace(b"numpy._core", b"numpy.core")


def write(path, contents, protocol=2):
    """Contents are bytes, or what to pickle."""
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, content in contents.items():
            data = content if isinstance(content, bytes) else dumps(content, protocol)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
