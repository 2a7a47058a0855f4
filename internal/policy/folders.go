package policy

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Folders expands patterns into folders of policies, each of which is a set of
// its own. "packs/..." stands for every folder at or below packs that holds a
// policy file itself; below one of them none is looked for, since LoadDir reads
// what is in it. Whatever else is a folder stands for itself. A pattern that
// nothing fits is an error.
func Folders(patterns ...string) ([]string, error) {
	var folders []string
	for _, pattern := range patterns {
		found := []string{pattern}
		if root, ok := strings.CutSuffix(filepath.ToSlash(pattern), "/..."); ok {
			var err error
			if found, err = foldersIn(filepath.FromSlash(root)); err != nil {
				return nil, fmt.Errorf("%s: %w", pattern, err)
			}
		} else if info, err := os.Stat(pattern); err != nil {
			return nil, err
		} else if !info.IsDir() {
			return nil, fmt.Errorf("%s is not a folder", pattern)
		}
		for _, dir := range found {
			if !slices.Contains(folders, dir) {
				folders = append(folders, dir)
			}
		}
	}
	return folders, nil
}

// foldersIn lists the topmost folders with policy files, in lexical order.
func foldersIn(root string) (folders []string, err error) {
	err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case !entry.IsDir():
			return nil
		case path != root && strings.HasPrefix(entry.Name(), "."):
			return fs.SkipDir
		}
		inside, err := os.ReadDir(path)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(inside, isPolicyFile) {
			folders = append(folders, path)
			return fs.SkipDir
		}
		return nil
	})
	if err == nil && len(folders) == 0 {
		err = errors.New("no folder there holds policies")
	}
	return folders, err
}

func isPolicyFile(entry fs.DirEntry) bool {
	name := entry.Name()
	return !entry.IsDir() && isYAML(name) && name != testsName && !strings.HasPrefix(name, ".")
}
