// Package tapsink is where responses pass on their way to the client: the
// server of Envoy's ext_proc filter for streamed responses.
//
//	Envoy                                  tapsink                    recorder
//	  │ response headers, metadata ───────────▶│ what was decided?          │
//	  │                                        │ can it be masked?          │
//	  │                                        │─── status, headers ───────▶│
//	  │◀──────── headers, or a 502 in place ───│◀── written ────────────────│
//	  │ body chunk ───────────────────────────▶│ mask                       │
//	  │                                        │─── masked chunk ──────────▶│
//	  │◀───────────────────── masked chunk ────│◀── written ────────────────│
//	  │ last chunk, or trailers ──────────────▶│ mask what was held         │
//	  │                                        │─── last chunk, Ended ─────▶│
//	  │◀───────────────────── masked rest ─────│◀── written ────────────────│
//
// It owns the choice of masker for a response, the headers that masking makes
// untrue, and the recording of responses: nothing is answered before it is
// written. It refuses what it cannot mask: responses without a decision, in an
// encoding or of a type that it cannot read, and parts of documents.
//
// Every fault before the end of the response is a gRPC error, never OK. Envoy
// treats a processor that closes its stream with OK as one that has lost
// interest, and sends the rest of the response unmasked, whatever
// failure_mode_allow says; on an error it resets the client.
package tapsink
