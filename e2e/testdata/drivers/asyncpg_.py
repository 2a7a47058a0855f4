"""What programs do with asyncpg; prints what they see."""
import faulthandler; faulthandler.dump_traceback_later(50, exit=True)
import asyncio, asyncpg, os, ssl


async def main():
    context = False
    if os.environ.get("CA"):
        context = ssl.create_default_context(cafile=os.environ["CA"])
    c = await asyncpg.connect(os.environ["ORDERS_URL"], ssl=context)
    print((await c.execute("delete from drivers")).split()[0])
    await c.executemany("insert into drivers (id, t) values ($1, $2)", [(i, "v%d" % i) for i in range(50)])
    print(await c.fetch("select id, t from drivers where id < $1 order by id", 3))
    print(await c.fetchval("select count(*) from drivers where id > $1", 7))
    print(await c.execute("select 1; select 2"))
    p = await c.prepare("select t from drivers where id = $1")
    print([await p.fetchval(i) for i in range(4)], [a.name for a in p.get_attributes()])
    async with c.transaction():
        cursor = await c.cursor("select id from drivers order by id")
        print(await cursor.fetch(3), await cursor.fetchrow())
        print(sum([r["id"] async for r in c.cursor("select id from drivers", prefetch=5)]))
        try:
            async with c.transaction():
                await c.execute("update drivers set t = 'lost'")
                await c.execute("select 1/0")
        except asyncpg.PostgresError as e:
            print(type(e).__name__, e.sqlstate)
        print(await c.fetchval("select t from drivers where id = 3"))
    async with c.transaction(isolation="serializable", readonly=True, deferrable=True):
        print(await c.fetchval("show transaction_isolation"))
    got = bytearray()

    async def take(data):
        got.extend(data)
    print(await c.copy_from_query("select id, t from drivers where id < $1 order by id", 3, output=take, format="csv"), bytes(got))
    print(await c.copy_records_to_table("drivers", columns=["id", "t"], records=[(i, "copied") for i in range(1000, 1500)]))
    print(await c.fetchval("select count(*) from drivers where id >= 1000"))
    try:
        await asyncio.wait_for(c.fetch("select pg_sleep(20)"), timeout=0.2)
    except asyncio.TimeoutError:
        print("cancelled")
    print(await c.fetchval("select 'still there'"))
    await c.close()

asyncio.run(main())
