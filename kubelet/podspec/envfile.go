package podspec

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// fileKey returns the value of a key in a file of variables that an init container wrote into a volume.
func fileKey(ref *v1.FileKeySelector, volumes map[string]Volume) (value string, found bool, err error) {
	v, ok := volumes[ref.VolumeName]
	if !ok || v.Path == "" {
		return "", false, fmt.Errorf("cannot find the volume %q referenced by FileKeyRef", ref.VolumeName)
	}
	// A link that leads out of the volume leads nowhere: what wrote it is not to read the node's files.
	f, err := os.OpenInRoot(v.Path, ref.Path)
	if err != nil {
		return "", false, errors.New("couldn't parse env file")
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return "", false, errors.New("couldn't parse env file")
	}
	value, err = parseEnvFile(f, ref.Key)
	if err != nil {
		return "", false, errors.New("couldn't parse env file")
	}
	if value == "" && !isTrue(ref.Optional) {
		return "", false, fmt.Errorf("environment variable key %q not found in file %q", ref.Key, filepath.Join(v.Path, ref.Path))
	}
	return value, value != "", nil
}

// parseEnvFile looks for a key in lines of the form NAME='value'. A value in quotes may have many lines, and nothing in it
// is special; one with a blank before it is empty, as in a shell. Blank lines and comments are passed over, all else is an
// error that names its line.
func parseEnvFile(r io.Reader, key string) (string, error) {
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimLeft(lines.Text(), " \t")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, rest, ok := strings.Cut(line, "=")
		if !ok || name == "" || name != strings.TrimRight(name, " \t") {
			return "", fmt.Errorf("line %d is not of the form NAME='value'", n)
		}
		value := ""
		if strings.TrimLeft(rest, " \t") == rest {
			var more int
			var err error
			if value, more, err = quoted(rest, lines); err != nil {
				return "", fmt.Errorf("line %d: %w", n, err)
			}
			n += more
		}
		if name == key {
			return value, nil
		}
	}
	return "", lines.Err()
}

// quoted returns what is in quotes at the beginning of text, going on with further lines up to the second one.
func quoted(text string, lines *bufio.Scanner) (value string, more int, err error) {
	text, ok := strings.CutPrefix(text, "'")
	if !ok {
		return "", 0, errors.New("value must be enclosed in single quotes")
	}
	var all strings.Builder
	for {
		part, after, closed := strings.Cut(text, "'")
		all.WriteString(part)
		if closed {
			if after = strings.TrimLeft(after, " \t"); after != "" && !strings.HasPrefix(after, "#") {
				return "", 0, errors.New("unexpected content after closing quote")
			}
			return all.String(), more, nil
		}
		all.WriteByte('\n')
		if !lines.Scan() {
			return "", 0, errors.New("unclosed single quote")
		}
		text = lines.Text()
		more++
	}
}
