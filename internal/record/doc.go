// Package record is the write-ahead recording of everything that is asked,
// decided and answered. It owns the folder of one replica: hash-chained,
// group-committed segments of access.Event, their recovery after a crash,
// their verification, their retention and the reading of them.
//
// It refuses to guess. An event is recorded when Append returns nil and not
// otherwise; when the disk fails every Append fails until the disk has been
// shown to be good again; a recording that was damaged is neither continued
// nor read past the damage.
//
// The folder holds
//
//	segment-000000000001.ndjson   one header line, then one event a line
//	segment-000000000002.ndjson   …
//	HEAD                          how far the recording had got, at least
//	segment-….ndjson.….torn       what a crash left after the last whole line
//
// and each line names the SHA-256 of the exact line before it (without its
// newline), across segments, headers included:
//
//	{"format":"chaperone-recording/1","segment":1,"replica":"a","start":1,"prev":"00…","time":"…","crc":"…"}
//	{"seq":1,"prev":"<hash of the header>","synced":0,"time":"…","opened":{…},"crc":"…"}
//	{"seq":2,"prev":"<hash of event 1>","time":"…","decided":{…},"crc":"…"}
//
// crc is the CRC-32C of the line before it: it tells a torn or flipped line
// from a whole one without its neighbours. synced, on the first line of each
// write, is the last event that was known to be on disk by then: it tells
// damage from what a power cut may leave.
package record
