"""Files that are written whole or not at all."""

import os


def write_whole(path, fill):
    """Let `fill` write a binary file, whole or not at all; make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            fill(file)
        os.replace(temporary, path)
    except OSError as error:  # of a full disk it names no file
        raise type(error)(f"{path} was not written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
