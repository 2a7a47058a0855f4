"""What programs do with psycopg 3; prints what they see."""
import faulthandler; faulthandler.dump_traceback_later(50, exit=True)
import datetime, os, psycopg
from decimal import Decimal

dsn = os.environ["ORDERS"]

with psycopg.connect(dsn) as c:
    k = c.cursor()
    print(k.execute("delete from drivers").rowcount >= 0)
    k.executemany("insert into drivers values (%s, %s, %s, %s)", [(i, f"row {i}", Decimal(i) / 4, [i, i + 1]) for i in range(20)])
    print(k.rowcount)
    c.commit()
    # prepared from the first time on, then let go
    for i in range(3):
        print(k.execute("select t, n, a from drivers where id = %s", (i,), prepare=True).fetchone())
    print(k.execute("select id, n, a, 'x'::bytea from drivers where id < 3 order by id", binary=True).fetchall())
    print(k.execute("select %s::date + 1, %s::timestamptz, %s::jsonb", (datetime.date(2024, 2, 28), "2024-01-01 00:00+00", '{"a": 1}')).fetchone()[0])
    # several statements in one message
    k.execute("select 1; select 2; select 3")
    print(k.fetchall(), k.nextset(), k.fetchall(), k.nextset(), k.fetchall(), k.nextset())
    # a cursor at the server
    with c.cursor(name="big", scrollable=True) as s:
        s.itersize = 3
        s.execute("select id from drivers order by id")
        print([r[0] for r in s][:7])
        s.scroll(0, mode="absolute")
        print(s.fetchmany(4))
    with c.cursor(name="kept", withhold=True) as s:
        s.execute("select id from drivers where id > %s order by id", (15,))
        c.commit()
        print(s.fetchall())
    print([r for r in k.stream("select id from drivers where id < 4 order by id")])
    # transactions within transactions
    with c.transaction():
        try:
            with c.transaction():
                k.execute("update drivers set t = 'lost' where id = 1")
                k.execute("select 1/0")
        except psycopg.Error as e:
            print(type(e).__name__, e.sqlstate)
        print(k.execute("select t from drivers where id = 1").fetchone())
    with c.pipeline() as p:
        a, b = c.cursor(), c.cursor()
        a.execute("select t from drivers where id = %s", (4,))
        b.execute("select count(*) from drivers")
        p.sync()
        print(a.fetchone(), b.fetchone())
    try:
        with c.pipeline():
            c.execute("update drivers set t = 'lost' where id = 5")
            c.execute("select nothing")
    except psycopg.Error as e:
        print(type(e).__name__, e.sqlstate)
    c.rollback()
    with k.copy("copy drivers (id, t, n) to stdout") as copy:
        print(sorted(b"".join(bytes(d) for d in copy).decode().splitlines())[:3])
    with k.copy("copy (select id, t from drivers where id < 3 order by id) to stdout (format binary)") as copy:
        copy.set_types(["int4", "text"])
        print(list(copy.rows()))
    with k.copy("copy drivers (id, t) from stdin") as copy:
        for i in range(100, 1100):
            copy.write_row((i, f"copied\t{i}"))
    print(k.rowcount, k.execute("select count(*), max(t) from drivers where id >= 100").fetchone())
    try:
        with k.copy("copy drivers (id) from stdin") as copy:
            copy.write(b"1\nnot a number\n")
    except psycopg.Error as e:
        print(type(e).__name__, e.sqlstate)
    c.rollback()
    print(c.info.transaction_status.name, c.info.encoding)

with psycopg.connect(dsn, autocommit=True, options="-c statement_timeout=5s -c application_name=x") as c:
    print(c.execute("show statement_timeout").fetchone(), c.info.parameter_status("application_name"))
    c.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
    c.read_only = True
    with c.transaction():
        print(c.execute("show transaction_isolation").fetchone(), c.execute("show transaction_read_only").fetchone())
