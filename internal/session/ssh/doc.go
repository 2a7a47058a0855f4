// Package ssh serves SSH clients: it ends their connection, takes their
// certificate (or token), and lets an act through to the target, which it
// reaches with a key and a certificate of the session's own, only when it was
// judged, decided and recorded.
//
//	ssh                   this package                        target
//	  │  PROXY v2 (Envoy)      │                                 │
//	  │ ◄─ key exchange ─────► │  host key certified by ca       │
//	  │  certificate ────────► │  principal, resources           │
//	  │                        │  revoked? MayConnect, Open      │
//	  │  session channel       │                                 │
//	  │  env, pty-req          │  kept, judged with the act      │
//	  │  exec "ls" ──────────► │  judge → decide                 │
//	  │ ◄─ stderr: waiting …   │  (approve: ask, wait, decide    │
//	  │                        │   again, consume)               │
//	  │                        │ Append(Decided, Executed)       │
//	  │                        │ ── key, 2 min certificate ────► │
//	  │                        │ ◄── pinned host key ─────────── │
//	  │                        │ ── session, env, exec "ls" ───► │
//	  │                        │ ◄───────────── stdout, stderr ─ │
//	  │                        │ mask, Append(Stream)            │
//	  │ ◄─ stdout, stderr      │                                 │
//	  │ ◄─ exit-status         │ Append(Ended)                   │
//
// One connection of a client is one session; each channel runs one act, and a
// second one on the same channel is refused. An act that is refused gets its
// denial on stderr and an exit status, so every client shows it. The target is
// dialled for the first act that may pass, and once for a session.
//
// The package refuses what it does not know by name: channels, requests,
// environment, algorithms. Every queue in it has a bound.
package ssh
