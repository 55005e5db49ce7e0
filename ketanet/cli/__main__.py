"""``python -m ketanet.cli``."""

from ketanet.cli.running import main

if __name__ == "__main__":
    main()
