"""The service's command line, with workers that read pixels: `python -m tests.service.pixel_service FLAGS`."""

import sys
from functools import partial

from clip4str_service import supervisor
from clip4str_service.__main__ import main
from tests.service.generation_stage import PIXELS

if __name__ == "__main__":
    supervisor.serve = partial(supervisor.serve, worker=PIXELS)
    sys.exit(main())
