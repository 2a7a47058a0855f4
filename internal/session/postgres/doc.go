// Package postgres serves PostgreSQL clients: it ends their TLS, takes their
// token as the password, dials the target with the credential of the resource,
// and lets a statement through only when it was judged, decided and recorded.
//
//	psql                  this package                        target
//	  │  PROXY v2 (Envoy)      │                                 │
//	  │  SSLRequest            │                                 │
//	  │ ◄─ 'S', TLS ─────────► │                                 │
//	  │  StartupMessage        │                                 │
//	  │ ◄─ CleartextPassword   │                                 │
//	  │  token ──────────────► │ verify, MayConnect, Open        │
//	  │                        │ ── SCRAM, injected role ──────► │
//	  │                        │ ── side connection: catalog ──► │
//	  │ ◄─ AuthenticationOk …  │ wall 1 checked                  │
//	  │                        │                                 │
//	  │  Query(text) ────────► │ analyze → decide → mask         │
//	  │ ◄─ NOTICE waiting …    │ (approve: ask, wait, judge      │
//	  │                        │  again, consume)                │
//	  │                        │ Append(Decided, Executed)       │
//	  │                        │ ── Parse Bind Describe ───────► │
//	  │                        │ ── Execute Sync ──────────────► │
//	  │                        │ ◄──────────── DataRow … ─────── │
//	  │                        │ Append(Rows, Ended)             │
//	  │ ◄─ DataRow … Complete  │                                 │
//	  │ ◄─ ReadyForQuery       │                                 │
//
// Towards the target only the extended protocol is spoken, one statement per
// Parse, so that a text can never turn out to be two. Messages of the client
// are taken in order, and each is judged before it is forwarded; what was
// forwarded is answered before a denial is, so pipelined answers keep their
// order. After an error both sides discard up to the next Sync, as the protocol
// has it; a denial inside a transaction aborts the transaction at the target
// too, so that ReadyForQuery tells the target's truth.
//
// The package refuses what it does not know by name: message types, startup
// parameters, kinds of statement. It holds no result in memory beyond one
// batch, and every queue in it has a bound.
package postgres
