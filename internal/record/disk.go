package record

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

const (
	headName = "HEAD"
	headTemp = "HEAD.tmp"
	tornEnd  = ".torn"
)

// A disk is what the writer asks of the file system. Tests put a faulty one in
// its place. Names are relative to the recording's folder.
type disk interface {
	open(name string, flag int) (file, error)
	rename(from, to string) error
	remove(name string) error
}

// A file is an open segment.
type file interface {
	io.WriteCloser
	Sync() error
	Truncate(size int64) error
}

// A folder is the disk of the real file system.
type folder string

func (d folder) open(name string, flag int) (file, error) {
	f, err := os.OpenFile(filepath.Join(string(d), name), flag, 0o600)
	if err != nil {
		return nil, err // a nil *os.File must not become a non-nil file
	}
	return f, nil
}

func (d folder) rename(from, to string) error {
	return os.Rename(filepath.Join(string(d), from), filepath.Join(string(d), to))
}

func (d folder) remove(name string) error { return os.Remove(filepath.Join(string(d), name)) }

// syncFolder makes the creation, renaming and removal of files durable.
func syncFolder(d disk) error {
	f, err := d.open(".", os.O_RDONLY)
	if err != nil {
		return fmt.Errorf("open folder: %w", err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("sync folder: %w", err)
	}
	return nil
}

// writeSynced replaces the file called name with content, on disk when it
// returns nil.
func writeSynced(d disk, name string, content []byte) error {
	f, err := d.open(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	n, err := f.Write(content)
	if err == nil && n < len(content) {
		err = io.ErrShortWrite
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// writeHead replaces HEAD atomically.
func writeHead(d disk, h head) error {
	h.Format = formatName
	line, _, err := sealed(h)
	if err == nil {
		err = writeSynced(d, headTemp, append(line, '\n'))
	}
	if err == nil {
		err = d.rename(headTemp, headName)
	}
	if err != nil {
		return fmt.Errorf("replace %s: %w", headName, err)
	}
	return nil
}

// readHead reads HEAD. ok is false when it is there but not as it was written;
// the error is fs.ErrNotExist when it is not there.
func readHead(dir string) (h head, ok bool, err error) {
	f, err := os.Open(filepath.Join(dir, headName))
	if err != nil {
		return head{}, false, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return head{}, false, fmt.Errorf("read %s: %w", headName, err)
	}
	line, ended := strings.CutSuffix(string(b), "\n")
	h, _, ok = parseSealed[head]([]byte(line))
	return h, ok && ended && h.Format == formatName, nil
}

// segmentName is the name of the nth segment, counted from 1.
func segmentName(ordinal uint64) string { return fmt.Sprintf("segment-%012d.ndjson", ordinal) }

// segments lists the ordinals of the segments in dir, in order.
func segments(dir string) ([]uint64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var ordinals []uint64
	for _, e := range entries {
		digits, ok := strings.CutPrefix(e.Name(), "segment-")
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSuffix(digits, ".ndjson"), 10, 64)
		if err == nil && segmentName(n) == e.Name() {
			ordinals = append(ordinals, n)
		}
	}
	slices.Sort(ordinals)
	return ordinals, nil
}

// makeFolder makes dir and whatever it lies in, on disk when it returns nil:
// nothing in a folder is durable before the folder is.
func makeFolder(dir string) error {
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		return fmt.Errorf("%s: %w", dir, syscall.ENOTDIR)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(dir)
	if err := makeFolder(parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncFolder(folder(parent))
}

// lockFolder makes dir if need be, closes it to everybody else and takes the
// one lock on it, which lasts until the file is closed or the process ends.
func lockFolder(dir string) (*os.File, error) {
	if err := makeFolder(filepath.Clean(dir)); err != nil {
		return nil, err
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = ErrLocked
	}
	if err == nil {
		err = f.Chmod(0o700)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
