import os

import django
import program
from django.conf import settings

settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": os.environ["PGHOST"],
            "PORT": os.environ["PGPORT"],
            "USER": os.environ["PGUSER"],
            "NAME": os.environ["PGDATABASE"],
            "OPTIONS": {} if os.environ.get("HEXADECIMAL") else {"server_side_binding": True},
        }
    },
    USE_TZ=True,
)
django.setup()
page = program.example()
names = ("add", "search", "similar", "groups")
program.run(*(page[name] for name in names), lambda error: error.__cause__.sqlstate)
cat = page["Photo"].objects.get(title="cat")
assert cat.cluster_id is not None and len(cat.embedding) == 512
