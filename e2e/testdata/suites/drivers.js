// What node-postgres programs do, each as a named check: prints "ok name" or
// "FAIL name: why".
const { Client, Pool } = require('pg')
const fs = require('fs')
const { once } = require('events')

const options = { query_timeout: 60000 }
if (process.env.CA) options.ssl = { ca: fs.readFileSync(process.env.CA, 'utf8') }

async function check(name, want, body) {
  const client = new Client(options)
  try {
    await client.connect()
    const got = JSON.stringify(await body(client))
    console.log(got === JSON.stringify(want) ? `ok ${name}` : `FAIL ${name}: got ${got}, want ${JSON.stringify(want)}`)
  } catch (e) {
    console.log(`FAIL ${name}: ${e}`)
  } finally {
    await client.end().catch(() => {})
  }
}

const state = (promise) => promise.then(() => 'none', (e) => e.code)

async function main() {
  await check('simple', [{ one: 1 }], async (c) => (await c.query('select 1 as one')).rows)
  await check('parameters', [{ a: 'x', b: 2, c: null, d: [1, 2] }],
    async (c) => (await c.query('select $1::text a, $2::int b, $3::text c, $4::int[] d', ['x', 2, null, [1, 2]])).rows)
  await check('named statement', ['1', '2', '3'], async (c) => {
    const all = []
    for (const v of ['1', '2', '3']) all.push((await c.query({ name: 'n', text: 'select $1::text v', values: [v] })).rows[0].v)
    return all
  })
  await check('array rows', [[1, 'a'], [2, 'b']],
    async (c) => (await c.query({ text: "values (1, 'a'), (2, 'b')", rowMode: 'array' })).rows)
  await check('several statements', [1, 2], async (c) => (await c.query('select 1 v; select 2 v')).map((r) => r.rows[0].v))
  await check('transaction that fails', ['42703', '25P02', 1], async (c) => {
    await c.query('begin')
    const got = [await state(c.query('select nothing')), await state(c.query('select 1'))]
    await c.query('rollback')
    return [...got, (await c.query('select 1 v')).rows[0].v]
  })
  await check('errors', ['42P01', '16', 'd_pkey'], async (c) => {
    const e = await c.query('select * from  nowhere').catch((e) => e)
    await c.query('create temp table d (id int primary key); insert into d values (1)')
    const dup = await c.query('insert into d values ($1)', [1]).catch((e) => e)
    return [e.code, e.position, dup.constraint]
  })
  await check('notice', ['careful'], async (c) => {
    const all = []
    c.on('notice', (n) => all.push(n.message))
    await c.query("do $$ begin raise warning 'careful'; end $$")
    return all
  })
  await check('listen and notify', ['jobs', 'hello', true], async (c) => {
    const told = once(c, 'notification')
    await c.query('listen jobs')
    const other = new Client(options)
    await other.connect()
    const pid = other.processID
    await other.query("notify jobs, 'hello'")
    const [n] = await told
    await other.end()
    return [n.channel, n.payload, n.processId === pid]
  })
  await check('types', ['2026-01-02T03:04:05.000Z', { a: [1] }, '\\x0001', '12.50', true], async (c) => {
    const r = (await c.query("select '2026-01-02 03:04:05+00'::timestamptz t, '{\"a\": [1]}'::jsonb j, '\\x0001'::bytea b, 12.50 n, true y")).rows[0]
    return [r.t, r.j, '\\x' + r.b.toString('hex'), r.n, r.y]
  })
  await check('a value of 3 MB', 3000000, async (c) => (await c.query('select length($1::bytea) n', [Buffer.alloc(3000000)])).rows[0].n)
  await check('pool', 20, async () => {
    const pool = new Pool({ ...options, max: 5 })
    const all = await Promise.all(Array.from({ length: 20 }, (_, i) => pool.query('select $1::int v', [i])))
    await pool.end()
    return all.length
  })
  await check('application name and settings', ['mine', '1234'], async (c) => {
    await c.query("set application_name = 'mine'")
    await c.query("select set_config('my.setting', '1234', false)")
    return [(await c.query('show application_name')).rows[0].application_name, (await c.query("select current_setting('my.setting') v")).rows[0].v]
  })
  await check('statement timeout', '57014', async (c) => {
    await c.query('set statement_timeout = 200')
    return state(c.query('select pg_sleep(60)'))
  })
  await check('end of a backend', '57P01', async (c) => {
    const other = new Client(options)
    other.on('error', () => {})
    await other.connect()
    const pid = (await other.query('select pg_backend_pid() p')).rows[0].p
    const cut = state(other.query('select pg_sleep(60)'))
    while ((await c.query("select pg_terminate_backend($1) from pg_stat_activity where pid = $1 and state = 'active'", [pid])).rowCount === 0);
    return cut
  })
}

main()
