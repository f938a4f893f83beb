"""Files that fail while they are read."""

import io


class Failing(io.BytesIO):
    """Raises `error` once the reader is past its first bytes."""

    def __init__(self, content: bytes, error: BaseException):
        super().__init__(content)
        self.error = error

    def read(self, size=-1):
        if self.tell() > 300:
            raise self.error
        return super().read(size)
