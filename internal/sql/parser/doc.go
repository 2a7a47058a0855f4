// Package parser runs PostgreSQL's own grammar (version 17) over text that may
// be hostile, and hands back the tree and the tokens.
//
// The grammar is C compiled to WebAssembly. Deep input exhausts its stack, and
// an instance that failed once may answer the next statement wrongly. So it
// runs in worker processes: the same binary, started with a hidden argument and
// nothing of this process but one pipe pair, or one listening socket where a
// Nursery keeps them for pools that come and go.
//
//	Pool.Parse ─► bounds in Go (bytes, NUL, UTF-8) ─► a worker, one statement at a time
//	                                                    │ Scan: tokens, nesting, operators bounded
//	                                                    │ Parse
//	tree + tokens ◄── frame with the same id ◄──────────┘
//	crash, deadline, bad frame, failed canary ─► worker killed, warm spare takes over, statement refused
//
// The package refuses what is out of bounds before the grammar sees it. It
// never turns a tree back into text.
package parser
