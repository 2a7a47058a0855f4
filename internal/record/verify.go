package record

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"
)

// A Report is what Verify found, up to the first bad event if there is one.
type Report struct {
	Segments int       `json:"segments"`
	First    uint64    `json:"first"` // seq of the first event that is there
	Last     uint64    `json:"last"`  // First-1 when there is none
	Hash     Hash      `json:"hash"`  // of the last line
	Head     uint64    `json:"head"`  // the last event that HEAD vouches for
	Torn     int64     `json:"torn"`  // bytes of an unfinished line at the end, as a crash leaves them
	Removed  []Removal `json:"removed,omitempty"`
}

// Events is how many events are there.
func (r Report) Events() uint64 {
	if r.First == 0 {
		return 0
	}
	return r.Last + 1 - r.First
}

// A Removal is what a tombstone tells: events that retention removed.
type Removal struct {
	First     uint64    `json:"first"`
	Last      uint64    `json:"last"`
	Segments  int       `json:"segments"`
	Newest    time.Time `json:"newest"` // of the removed events
	Time      time.Time `json:"time"`   // when they were removed
	Retention string    `json:"retention"`
}

// Verify reads the whole recording in dir and checks every byte of it. The
// error is a *Damage that names the first bad event, or tells why the
// recording could not be read; nil means that the recording is whole up to its
// end. It works beside a live recorder, where a line that is just being written
// counts as Torn.
//
// Verify alone cannot find a change by someone who rewrote the recording from
// the changed event to its end, HEAD included, nor one that took away the
// events after HEAD: for these compare Hash with a checkpoint kept elsewhere.
func Verify(dir string) (Report, error) {
	for attempt := 0; ; attempt++ {
		r, err := (&verification{}).run(dir)
		// A live recorder may prune a segment between the listing and the reading.
		if errors.Is(err, fs.ErrNotExist) && attempt < 3 {
			continue
		}
		return r, err
	}
}

// A verification is one run of Verify.
type verification struct {
	survey
	walk
	report    Report
	ordinals  []uint64
	origin    position // what the first segment follows
	explained bool     // why the first segment is not the first ever
	headSeen  bool
	each      func(line []byte, seq uint64) error // sees every event, when set
}

var errNotJSON = errors.New("not JSON")

func (v *verification) run(dir string) (Report, error) {
	v.survey.dir, v.walk.dir = dir, dir
	var err error
	// HEAD first: what it vouches for must then be in what is read later.
	v.head, v.headOK, err = readHead(dir)
	noHead := errors.Is(err, fs.ErrNotExist)
	if err != nil && !noHead {
		return v.report, fmt.Errorf("verify recording: %w", err)
	}
	if v.ordinals, err = segments(dir); err != nil {
		return v.report, fmt.Errorf("verify recording: %w", err)
	}
	if noHead && len(v.ordinals) == 0 {
		return v.report, fmt.Errorf("verify recording: %s holds none", dir)
	}
	v.report.Head = v.head.Seq
	damage, err := v.walkAll()
	if err != nil {
		return v.report, fmt.Errorf("verify recording: %w", err)
	}
	if damage == nil {
		damage = v.checkEnd(noHead)
	}
	if damage != nil {
		return v.report, damage
	}
	return v.report, nil
}

// walkAll walks all segments.
func (v *verification) walkAll() (*Damage, error) {
	if len(v.ordinals) == 0 {
		return nil, nil
	}
	v.survey.last = v.ordinals[len(v.ordinals)-1]
	v.anchored = v.ordinals[0] == 1
	v.visit, v.reached = v.look, v.note
	for v.ordinal = v.ordinals[0]; v.ordinal <= v.survey.last; v.ordinal++ {
		if damage, err := v.nextSegment(); damage != nil || err != nil {
			return damage, err
		}
	}
	return nil, nil
}

func (v *verification) nextSegment() (*Damage, error) {
	if v.ordinals[v.report.Segments] != v.ordinal {
		fl := &flaw{kind: missingFile, at: spot{segmentName(v.ordinal), 0, v.at.seq + 1}}
		return v.diagnose(fl, v.walk.last), nil
	}
	fl, err := v.walk.segment(v.ordinal)
	switch {
	case errors.Is(err, errNotJSON):
		return &Damage{File: segmentName(v.ordinal), Line: v.walk.last.line + 1, Seq: v.at.seq + 1,
			What: Changed, Detail: "the line is not JSON"}, nil
	case err != nil:
		return nil, err
	case fl == nil:
		v.report.Segments++
		return nil, nil
	case v.ordinal == v.survey.last && v.headOK && v.torn(fl):
		return nil, v.measureTorn(fl)
	}
	return v.diagnose(fl, v.walk.last), nil
}

// torn reports whether a crash, or a write that is under way, can have left
// the flaw in the last segment. Whether HEAD vouched for more is checked later.
func (v *verification) torn(fl *flaw) bool {
	return fl.kind == unfinished || fl.kind == headerless && v.head.Segment < v.ordinal
}

// measureTorn notes the unfinished line at the end.
func (v *verification) measureTorn(fl *flaw) error {
	f, lines, err := openAt(v.survey.dir, v.ordinal, fl.offset)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, _, err := lines.next(); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	v.report.Segments++
	v.report.Torn = lines.offset - fl.offset
	return nil
}

// note follows the walk.
func (v *verification) note() {
	if v.report.First == 0 {
		v.report.First = v.walk.header.Start
		v.origin = position{seq: v.walk.header.Start - 1, hash: v.walk.header.Prev}
		v.explained = v.origin == position{}
		v.seeHead(v.origin)
	}
	v.report.Last, v.report.Hash = v.at.seq, v.at.hash
	v.seeHead(v.at)
}

func (v *verification) seeHead(at position) {
	v.headSeen = v.headSeen || at.seq == v.head.Seq && at.hash == v.head.Hash
}

// look reads one event for what Verify must know of it.
func (v *verification) look(line []byte, e entry) error {
	if !json.Valid(line) {
		return errNotJSON
	}
	if v.each != nil {
		if err := v.each(line, e.seq); err != nil {
			return err
		}
	}
	stone, at, ok := parseTombstone(line, e.seq)
	if !ok {
		return nil
	}
	first, last := stone.Segments[0], stone.Segments[len(stone.Segments)-1]
	removal := Removal{First: first.First, Last: last.Last, Segments: len(stone.Segments), Time: at, Retention: stone.Retention}
	retention, err := time.ParseDuration(stone.Retention)
	for _, b := range stone.Segments {
		if b.Newest.After(removal.Newest) {
			removal.Newest = b.Newest
		}
		onSchedule := err == nil && !b.Newest.Add(retention).After(at)
		if b.Last == v.origin.seq && b.Hash == v.origin.hash && onSchedule {
			v.explained = true
		}
	}
	v.report.Removed = append(v.report.Removed, removal)
	return nil
}

// checkEnd compares what was walked with HEAD and with the tombstones.
func (v *verification) checkEnd(noHead bool) *Damage {
	end := v.at.seq
	last := v.walk.last
	switch {
	case v.report.First > 0 && !v.explained:
		return &Damage{File: segmentName(v.ordinals[0]), Line: 1, Seq: 1, What: Deleted,
			Detail: fmt.Sprintf("events 1 to %d are missing and no tombstone accounts for them", v.origin.seq)}
	case noHead:
		return &Damage{File: headName, Seq: end + 1, What: Deleted, Detail: "there is no such file, so the end cannot be known"}
	case !v.headOK:
		return &Damage{File: headName, Line: 1, Seq: end + 1, What: Changed, Detail: "it is not as it was written"}
	case v.head.Segment > v.survey.last:
		return &Damage{File: segmentName(v.survey.last + 1), Seq: end + 1, What: Truncated,
			Detail: fmt.Sprintf("%s says that there were segments up to %d, with events up to %d", headName, v.head.Segment, v.head.Seq)}
	case v.head.Seq > end:
		return &Damage{File: last.file, Line: last.line + 1, Seq: end + 1, What: Truncated,
			Detail: fmt.Sprintf("%s says that there were events up to %d", headName, v.head.Seq)}
	case v.headSeen || v.report.First == 0 && v.head == head{Format: formatName}:
		return nil
	case v.head.Seq == end:
		return &Damage{File: last.file, Line: last.line, Seq: end, What: Changed,
			Detail: fmt.Sprintf("%s names another hash", headName)}
	}
	return &Damage{File: headName, Line: 1, Seq: v.head.Seq, What: Changed,
		Detail: "the chain goes on from another line"}
}
