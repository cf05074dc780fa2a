"""How much memory and time does an image of many pixels take, in a small file?

python tools/hostile.py FOLDER; python -W ignore benchmarks/bombs.py FOLDER/image/bomb*
"""

import os
import resource
import sys
from pathlib import Path

from dlzoo.data import decode
from dlzoo.errors import DataError


def main() -> None:
    for file in map(Path, sys.argv[1:]):
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            continue
        before = resource.getrusage(resource.RUSAGE_SELF)
        try:
            answer = "x".join(map(str, decode.decode(file).shape))
        except DataError as error:
            answer = f"{error.id}: {error.message}"
        after = resource.getrusage(resource.RUSAGE_SELF)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        memory = (after.ru_maxrss - before.ru_maxrss) >> 10
        print(f"{file.name:40s} {seconds:5.1f} s {memory:5d} MB  {answer}", flush=True)
        os._exit(0)


if __name__ == "__main__":
    main()
