"""`python -m audiocraft_api.config` prints the settings reference for `docs/settings.md`."""

from audiocraft_api.config.reference import settings_page

if __name__ == "__main__":
    print(settings_page(), end="")
