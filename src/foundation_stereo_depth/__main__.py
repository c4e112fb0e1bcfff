"""`python -m foundation_stereo_depth`, which is `foundation-stereo`."""

import sys

from foundation_stereo_depth.umbrella import main

if __name__ == "__main__":
    sys.exit(main())
