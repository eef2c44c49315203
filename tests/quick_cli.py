"""The command `smpq` as a process of its own that keeps torch's tables: each trace takes half of the time, and nothing
else differs.
"""

import cli
from tests.torch_kept import garbage_kept, torch_kept

if __name__ == "__main__":
    with garbage_kept(), torch_kept():
        cli.main()
