"""Small files in the official formats, and a web server that hands them out, well or badly."""

import gzip
import hashlib
import http.server
import struct

import numpy as np

from fflearn.data.official import Official, Source

IDX_NAMES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def mnist_files(n_train: int = 30, n_test: int = 10) -> dict[str, bytes]:
    """Official file name -> gzipped content: image i is filled with i, its label is i % 10."""
    files = {}
    for n, names in ((n_train, IDX_NAMES[:2]), (n_test, IDX_NAMES[2:])):
        count = np.arange(n)
        images = np.broadcast_to(count[:, None, None], (n, 28, 28))
        for name, array in zip(names, (images, count % 10), strict=True):
            # A fixed time, so that the checksum is the same in every process.
            files[f"{name}-ubyte.gz"] = gzip.compress(idx_bytes(array), mtime=0)
    return files


FILES = mnist_files()
NAME, CONTENT = "train-images-idx3-ubyte.gz", FILES["train-images-idx3-ubyte.gz"]


class Mirror(http.server.BaseHTTPRequestHandler):
    """The first folder of the URL says how it behaves."""

    def do_GET(self):
        behaviour, name = self.path.strip("/").split("/")
        self.server.asked.append(behaviour)
        getattr(self, behaviour)(FILES[name])

    def good(self, content):
        self.answer(content, len(content))

    def wrong_bytes(self, content):
        self.good(content[:-1] + b"?")

    def web_page(self, content):
        self.good(b"<html>Please log in</html>")

    def promises_more(self, content):
        self.answer(content, len(content) + 100)

    def promises_less(self, content):
        self.answer(content, len(content) - 100)

    def truncates(self, content):
        self.answer(content[: len(content) // 2], len(content))

    def nonsense_length(self, content):
        self.answer(content, "many")

    def no_answer(self, content):
        self.server.closing.wait()

    def stalls(self, content):
        self.answer(content[:10], len(content))
        self.server.closing.wait()

    def not_http(self, content):
        self.wfile.write(b"hello\r\n\r\n")

    def forbidden(self, content):
        self.send_error(403)

    def packs_again(self, content):
        """What a server does that gzips .gz files for clients that accept it."""
        if "gzip" in self.headers.get("Accept-Encoding", ""):
            self.send_response(200)
            self.send_header("Content-Encoding", "gzip")
            self.end_headers()
            self.wfile.write(content)
        else:
            self.good(content)

    def answer(self, content, length):
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def log_message(self, *args):
        pass


def source(server, *behaviours, files=FILES) -> Source:
    official = tuple(Official(n, hashlib.md5(c).hexdigest()) for n, c in files.items())
    mirrors = tuple(f"http://127.0.0.1:{server.server_port}/{b}/" for b in behaviours)
    return Source("mnist", official, mirrors)


def fill(folder, files=FILES):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
