#!/usr/bin/env python3
"""Runs the message as SQL on an empty database in memory, and prints the rows.

A message is what a stranger sends, so it is data here and never a command. The `sqlite3` shell would obey `.shell rm -rf ~` in
a message; SQLite's library knows no such commands, and the authorizer below refuses what leads out of the database.
"""

import sqlite3
import sys
import time

SECONDS = 10  # a query may be endless
ROWS = 1000
REFUSED = {sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH, sqlite3.SQLITE_PRAGMA}  # other files, and settings


def authorize(action, first, second, *_):
    if action in REFUSED or (action == sqlite3.SQLITE_FUNCTION and second == "load_extension"):
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def statements(text):
    """The message cut at the semicolons that end a statement."""
    statement = ""
    for piece in text.split(";"):
        statement += piece + ";"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip(" \n\t;"):
        yield statement.rstrip(";")


def main():
    database = sqlite3.connect(":memory:", isolation_level=None)
    database.set_authorizer(authorize)
    if hasattr(database, "setlimit"):  # Python 3.11: no value and no statement of more than a megabyte
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1_000_000)
    deadline = time.monotonic() + SECONDS
    database.set_progress_handler(lambda: time.monotonic() > deadline, 100_000)
    for statement in statements(sys.stdin.read()):
        rows = database.execute(statement)
        if rows.description:
            print("|".join(column[0] for column in rows.description))
            for _, row in zip(range(ROWS), rows):
                print("|".join("" if value is None else str(value) for value in row), flush=True)
        else:
            print("ok", flush=True)


try:
    main()
except sqlite3.Error as error:
    sys.exit(f"SQL: {error}")
