"""What a doubting user runs before switching: each module is one command and prints its table."""
