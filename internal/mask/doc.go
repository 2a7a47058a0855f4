// Package mask hides values in what targets answer: JSON fields by pointer, and
// whatever looks like a secret by detector, in JSON, text, server-sent events
// and single cells. It works on streams: bytes go in as they arrive, split
// anywhere, and come out as soon as they are known to be safe, with bounded
// memory. The output never depends on how the input was split.
//
// It owns how a mask looks and what counts as a secret. It refuses (with an
// error, after which the response must not continue) whatever it cannot decode:
// nothing passes because it was not understood. It knows nothing of HTTP, of
// Envoy or of SQL; column masks are enforced before a query runs, not here.
package mask
