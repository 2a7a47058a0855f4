import java.io.*;
import java.sql.*;
import java.util.*;
import org.postgresql.PGConnection;
import org.postgresql.copy.CopyManager;
import org.postgresql.largeobject.*;

/** What JDBC programs do, each as a named check: prints "ok name" or "FAIL name: why". The URL comes from JDBC_URL. */
public class Drivers {
    interface Check { Object run(Connection c) throws Exception; }

    static final String URL = System.getenv("JDBC_URL");

    static Connection open(String... options) throws SQLException {
        Properties p = new Properties();
        p.setProperty("user", System.getenv("PGUSER"));
        p.setProperty("password", System.getenv("PGPASSWORD"));
        for (int i = 0; i < options.length; i += 2) p.setProperty(options[i], options[i + 1]);
        return DriverManager.getConnection(URL, p);
    }

    static void check(String name, Object want, Check body, String... options) {
        try (Connection c = open(options)) {
            Object got = body.run(c);
            System.out.println(want.equals(got) ? "ok " + name : "FAIL " + name + ": got " + got + ", want " + want);
        } catch (Throwable e) {
            System.out.println("FAIL " + name + ": " + e.toString().replace('\n', ' '));
        }
    }

    static List<String> rows(ResultSet r) throws SQLException {
        List<String> all = new ArrayList<>();
        int n = r.getMetaData().getColumnCount();
        while (r.next()) {
            StringJoiner row = new StringJoiner(",");
            for (int i = 1; i <= n; i++) row.add(String.valueOf(r.getString(i)));
            all.add(row.toString());
        }
        return all;
    }

    static List<String> query(Connection c, String text) throws SQLException {
        try (Statement s = c.createStatement(); ResultSet r = s.executeQuery(text)) { return rows(r); }
    }

    static void run(Connection c, String... texts) throws SQLException {
        try (Statement s = c.createStatement()) { for (String t : texts) s.execute(t); }
    }

    static String state(SQLException e) { return e.getSQLState(); }

    public static void main(String[] args) throws Exception {
        for (String mode : new String[]{"extended", "simple", "extendedForPrepared", "extendedCacheEverything"}) {
            check("query mode " + mode, List.of("2,b", "3,c"), c -> {
                run(c, "create temp table t (id int, v text)", "insert into t values (1, 'a'), (2, 'b'), (3, 'c')");
                try (PreparedStatement p = c.prepareStatement("select id, v from t where id > ? order by id")) {
                    p.setInt(1, 1);
                    return rows(p.executeQuery());
                }
            }, "preferQueryMode", mode);
        }
        check("server-side prepare", List.of("0", "1", "4", "9", "16", "25", "36"), c -> {
            List<String> all = new ArrayList<>();
            try (PreparedStatement p = c.prepareStatement("select ?::int * ?::int")) {
                for (int i = 0; i < 7; i++) { p.setInt(1, i); p.setInt(2, i); all.addAll(rows(p.executeQuery())); }
            }
            return all;
        }, "prepareThreshold", "2");
        check("binary transfer", "2026-01-02 03:04:05.678901 1.5 123.45 true", c -> {
            try (PreparedStatement p = c.prepareStatement("select ?::timestamp, ?::float8, ?::numeric, ?::bool")) {
                p.setTimestamp(1, Timestamp.valueOf("2026-01-02 03:04:05.678901")); p.setDouble(2, 1.5);
                p.setBigDecimal(3, new java.math.BigDecimal("123.45")); p.setBoolean(4, true);
                ResultSet r = p.executeQuery(); r.next();
                return r.getTimestamp(1) + " " + r.getDouble(2) + " " + r.getBigDecimal(3) + " " + r.getBoolean(4);
            }
        }, "prepareThreshold", "-1");
        for (String rewrite : new String[]{"false", "true"}) {
            check("batch, rewritten " + rewrite, "500 124750", c -> {
                run(c, "create temp table b (id int, v text)");
                c.setAutoCommit(false);
                try (PreparedStatement p = c.prepareStatement("insert into b values (?, ?)")) {
                    for (int i = 0; i < 500; i++) { p.setInt(1, i); p.setString(2, "v" + i); p.addBatch(); }
                    p.executeBatch();
                }
                c.commit();
                return query(c, "select count(*) || ' ' || sum(id) from b").get(0);
            }, "reWriteBatchedInserts", rewrite);
        }
        check("batch that fails", "23505 0", c -> {
            run(c, "create temp table b (id int primary key)");
            c.setAutoCommit(false);
            String got = "none";
            try (Statement s = c.createStatement()) {
                for (String v : new String[]{"1", "2", "1", "3"}) s.addBatch("insert into b values (" + v + ")");
                s.executeBatch();
            } catch (BatchUpdateException e) { got = state(e); }
            c.rollback();
            return got + " " + query(c, "select count(*) from b").get(0);
        });
        check("generated keys", List.of("1", "2"), c -> {
            run(c, "create temp table g (id serial, v text)");
            try (PreparedStatement p = c.prepareStatement("insert into g (v) values ('a'), ('b')", Statement.RETURN_GENERATED_KEYS)) {
                p.executeUpdate();
                List<String> keys = new ArrayList<>();
                for (ResultSet r = p.getGeneratedKeys(); r.next();) keys.add(r.getString("id"));
                return keys;
            }
        });
        check("fetch size", "1000 499500", c -> {
            c.setAutoCommit(false);
            try (Statement s = c.createStatement()) {
                s.setFetchSize(7);
                long n = 0, sum = 0;
                for (ResultSet r = s.executeQuery("select g from generate_series(0, 999) g"); r.next(); n++) sum += r.getLong(1);
                return n + " " + sum;
            }
        });
        check("scrollable and updatable", "3 x", c -> {
            run(c, "create temp table u (id int primary key, v text)", "insert into u values (1, 'a'), (2, 'b'), (3, 'c')");
            try (Statement s = c.createStatement(ResultSet.TYPE_SCROLL_INSENSITIVE, ResultSet.CONCUR_UPDATABLE)) {
                ResultSet r = s.executeQuery("select id, v from u order by id");
                r.absolute(2); r.updateString("v", "x"); r.updateRow(); r.last();
                return r.getInt(1) + " " + query(c, "select v from u where id = 2").get(0);
            }
        });
        for (String format : new String[]{"text", "csv", "binary"}) {
            check("copy, " + format, List.of("1,a", "2,null"), c -> {
                run(c, "create temp table c1 (id int, v text)", "create temp table c2 (id int, v text)", "insert into c1 values (1, 'a'), (2, null)");
                CopyManager m = c.unwrap(PGConnection.class).getCopyAPI();
                ByteArrayOutputStream out = new ByteArrayOutputStream();
                m.copyOut("copy c1 to stdout (format " + format + ")", out);
                m.copyIn("copy c2 from stdin (format " + format + ")", new ByteArrayInputStream(out.toByteArray()));
                return query(c, "select * from c2 order by id");
            });
        }
        check("copy that fails, then goes on", "22P02 1", c -> {
            run(c, "create temp table c1 (id int)");
            String got = "none";
            try { c.unwrap(PGConnection.class).getCopyAPI().copyIn("copy c1 from stdin", new StringReader("1\nx\n")); } catch (SQLException e) { got = state(e); }
            return got + " " + query(c, "select 1").get(0);
        });
        check("copy that the client ends", "57014 0", c -> {
            run(c, "create temp table c1 (id int)");
            org.postgresql.copy.CopyIn in = c.unwrap(PGConnection.class).getCopyAPI().copyIn("copy c1 from stdin");
            in.writeToCopy("1\n".getBytes(), 0, 2);
            in.cancelCopy();
            return "57014 " + query(c, "select count(*) from c1").get(0);
        });
        check("cancel", "57014 1", c -> {
            try (Statement s = c.createStatement()) {
                Thread canceller = new Thread(() -> {
                    try (Connection other = open()) { // until the statement is seen to run
                        while (query(other, "select 1 from pg_stat_activity where state = 'active' and query like '%pg_sleep(61)%' and query not like '%pg_stat%'").isEmpty()) { Thread.onSpinWait(); }
                        s.cancel();
                    } catch (SQLException e) { throw new RuntimeException(e); }
                });
                canceller.start();
                String got = "none";
                try { s.execute("select pg_sleep(61)"); } catch (SQLException e) { got = state(e); }
                canceller.join();
                return got + " " + query(c, "select 1").get(0);
            }
        });
        check("query timeout", "57014", c -> {
            try (Statement s = c.createStatement()) { s.setQueryTimeout(1); s.execute("select pg_sleep(60)"); return "none"; } catch (SQLException e) { return state(e); }
        });
        check("listen and notify", "jobs:hello true", c -> {
            run(c, "listen jobs");
            int pid;
            try (Connection other = open()) { pid = other.unwrap(PGConnection.class).getBackendPID(); run(other, "notify jobs, 'hello'"); }
            org.postgresql.PGNotification[] all = c.unwrap(PGConnection.class).getNotifications(20_000);
            return all[0].getName() + ":" + all[0].getParameter() + " " + (all[0].getPID() == pid);
        });
        check("backend pid", true, c -> query(c, "select pg_backend_pid()").get(0).equals("" + c.unwrap(PGConnection.class).getBackendPID()));
        check("savepoints", List.of("1", "3"), c -> {
            run(c, "create temp table s (id int)");
            c.setAutoCommit(false);
            run(c, "insert into s values (1)");
            Savepoint p = c.setSavepoint("p");
            run(c, "insert into s values (2)");
            c.rollback(p);
            run(c, "insert into s values (3)");
            c.commit();
            return query(c, "select id from s order by id");
        });
        check("autosave", List.of("1", "2"), c -> {
            run(c, "create temp table s (id int primary key)");
            c.setAutoCommit(false);
            run(c, "insert into s values (1)");
            try { run(c, "insert into s values (1)"); } catch (SQLException e) { /* the transaction goes on */ }
            run(c, "insert into s values (2)");
            c.commit();
            return query(c, "select id from s order by id");
        }, "autosave", "always");
        check("read only and isolation", "25006 8", c -> {
            c.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE);
            c.setReadOnly(true);
            c.setAutoCommit(false);
            String got = "none";
            try { run(c, "create table never (id int)"); } catch (SQLException e) { got = state(e); }
            c.rollback();
            return got + " " + c.getTransactionIsolation();
        });
        check("function call", 42, c -> {
            run(c, "create function pg_temp.twice(x int) returns int language sql as 'select 2 * x'");
            try (CallableStatement f = c.prepareCall("{? = call pg_temp.twice(?)}")) {
                f.registerOutParameter(1, Types.INTEGER); f.setInt(2, 21); f.execute();
                return f.getInt(1);
            }
        });
        check("procedure", List.of("7"), c -> {
            run(c, "create temp table p (id int)", "create procedure pg_temp.put(x int) language sql as 'insert into p values (x)'");
            try (CallableStatement f = c.prepareCall("call pg_temp.put(?)")) { f.setInt(1, 7); f.execute(); }
            return query(c, "select id from p");
        });
        check("refcursor", List.of("1", "2"), c -> {
            run(c, "create function pg_temp.open() returns refcursor language plpgsql as 'declare r refcursor; begin open r for select generate_series(1, 2); return r; end'");
            c.setAutoCommit(false);
            try (CallableStatement f = c.prepareCall("{? = call pg_temp.open()}")) {
                f.registerOutParameter(1, Types.REF_CURSOR); f.execute();
                return rows((ResultSet) f.getObject(1));
            }
        });
        check("arrays, json, uuid", "[1, 2, null] {\"a\": 1} 00000000-0000-0000-0000-000000000007", c -> {
            try (PreparedStatement p = c.prepareStatement("select ?::int[], ?::jsonb, ?::uuid")) {
                p.setArray(1, c.createArrayOf("int4", new Object[]{1, 2, null})); p.setString(2, "{\"a\":1}");
                p.setObject(3, UUID.fromString("00000000-0000-0000-0000-000000000007"));
                ResultSet r = p.executeQuery(); r.next();
                return Arrays.toString((Object[]) r.getArray(1).getArray()) + " " + r.getString(2) + " " + r.getObject(3);
            }
        });
        check("an enum of the database's own", "happy", c -> {
            run(c, "drop type if exists mood", "create type mood as enum ('sad', 'happy')");
            try (PreparedStatement p = c.prepareStatement("select ?::mood")) {
                p.setObject(1, "happy", Types.OTHER);
                ResultSet r = p.executeQuery(); r.next();
                return r.getString(1);
            }
        }, "prepareThreshold", "1");
        check("large objects", "hello large object", c -> {
            c.setAutoCommit(false);
            LargeObjectManager m = c.unwrap(PGConnection.class).getLargeObjectAPI();
            long oid = m.createLO(LargeObjectManager.READ | LargeObjectManager.WRITE);
            LargeObject o = m.open(oid, LargeObjectManager.READ | LargeObjectManager.WRITE);
            o.write("hello large object".getBytes()); o.seek(0);
            String got = new String(o.read(100));
            o.close(); m.delete(oid); c.commit();
            return got;
        });
        check("a value of 3 MB", 3_000_000, c -> {
            try (PreparedStatement p = c.prepareStatement("select length(?::bytea)")) {
                p.setBytes(1, new byte[3_000_000]);
                ResultSet r = p.executeQuery(); r.next();
                return r.getInt(1);
            }
        });
        check("several statements", "1 2", c -> {
            try (Statement s = c.createStatement()) {
                s.execute("select 1; select 2");
                ResultSet r = s.getResultSet(); r.next();
                String got = r.getString(1);
                s.getMoreResults(); r = s.getResultSet(); r.next();
                return got + " " + r.getString(1);
            }
        });
        check("metadata", "m:id,v:id", c -> {
            run(c, "drop table if exists m", "create table m (id int primary key, v text)");
            DatabaseMetaData d = c.getMetaData();
            String got = "";
            for (ResultSet r = d.getTables(null, "public", "m", new String[]{"TABLE"}); r.next();) got += r.getString("TABLE_NAME") + ":";
            StringJoiner columns = new StringJoiner(",");
            for (ResultSet r = d.getColumns(null, "public", "m", "%"); r.next();) columns.add(r.getString("COLUMN_NAME"));
            got += columns + ":";
            for (ResultSet r = d.getPrimaryKeys(null, "public", "m"); r.next();) got += r.getString("COLUMN_NAME");
            run(c, "drop table m");
            return got;
        });
        check("errors", "42P01 16 23505 d_pkey", c -> {
            run(c, "create temp table d (id int primary key)", "insert into d values (1)");
            String got = "";
            try { query(c, "select * from  nowhere"); } catch (org.postgresql.util.PSQLException e) { got = state(e) + " " + e.getServerErrorMessage().getPosition(); }
            try { run(c, "insert into d values (1)"); } catch (org.postgresql.util.PSQLException e) { got += " " + state(e) + " " + e.getServerErrorMessage().getConstraint(); }
            return got;
        });
        check("notices", "careful", c -> {
            try (Statement s = c.createStatement()) { s.execute("do $$ begin raise warning 'careful'; end $$"); return s.getWarnings().getMessage(); }
        });
        check("settings", "Etc/GMT-3 mine", c -> {
            run(c, "set timezone = 'Etc/GMT-3'", "set work_mem = '5MB'", "create schema if not exists mine", "set search_path = mine");
            return query(c, "show timezone").get(0) + " " + query(c, "select current_schema()").get(0);
        });
        check("is valid, and reset", true, c -> { run(c, "discard all"); return c.isValid(5); });
    }
}
