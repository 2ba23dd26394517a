"""`python -m audiocraft_api.config` prints the README's table of the settings."""

from audiocraft_api.config import settings_table

if __name__ == "__main__":
    print(settings_table())
