//go:build linux && powercut

package powercut

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// withoutMsync is a folder with the relay and the agent as Windows runs it: there
// ristretto's msync, through which Badger's logs and tables go, does nothing. Files under the
// module cache cannot be overlaid, so the module is replaced by a changed copy.
var withoutMsync = sync.OnceValues(func() (string, error) {
	const ristretto = "github.com/dgraph-io/ristretto/v2"
	from, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", ristretto).Output()
	if err != nil {
		return "", fmt.Errorf("find %s: %w", ristretto, err)
	}
	work, err := os.MkdirTemp(bins, "ristretto-")
	if err != nil {
		return "", err
	}
	changed, modfile := filepath.Join(work, "ristretto"), filepath.Join(work, "go.mod")
	if err := os.CopyFS(changed, os.DirFS(strings.TrimSpace(string(from)))); err != nil {
		return "", err
	}
	source := filepath.Join(changed, "z", "mmap_linux.go")
	if err := blank(source, source, "msync"); err != nil {
		return "", err
	}
	module, err := os.ReadFile("../../go.mod")
	if err != nil {
		return "", err
	}
	sums, err := os.ReadFile("../../go.sum")
	if err != nil {
		return "", err
	}
	module = append(module, "\nreplace "+ristretto+" => "+changed+"\n"...)
	if err := errors.Join(os.WriteFile(modfile, module, 0o600), os.WriteFile(filepath.Join(work, "go.sum"), sums, 0o600)); err != nil {
		return "", err
	}
	return variant("without-msync", "-modfile", modfile)
})

// withoutSync is a folder with the relay and an agent whose journal does not sync its
// groups: the bug that a cut must show.
var withoutSync = sync.OnceValues(func() (string, error) {
	work, err := os.MkdirTemp(bins, "overlay-")
	if err != nil {
		return "", err
	}
	source, err := filepath.Abs("../../agent/journal/disk_linux.go")
	if err != nil {
		return "", err
	}
	changed, overlay := filepath.Join(work, "disk_linux.go"), filepath.Join(work, "overlay.json")
	if err := blank(source, changed, "dataSync"); err != nil {
		return "", err
	}
	text := fmt.Sprintf(`{"Replace":{%s:%s}}`, strconv.Quote(source), strconv.Quote(changed))
	if err := os.WriteFile(overlay, []byte(text), 0o600); err != nil {
		return "", err
	}
	return variant("without-sync", "-overlay", overlay)
})

// variant builds the agent with some flags, beside the relay as it is shipped.
func variant(name string, flags ...string) (string, error) {
	plain, err := shipped()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(bins, name)
	if err := build(filepath.Join(dir, "storelay-agent"), "../../agent", flags...); err != nil {
		return "", err
	}
	return dir, os.Link(filepath.Join(plain, "storelay-relay"), filepath.Join(dir, "storelay-relay"))
}

// blank writes a Go file anew with one function that returns an error doing nothing.
func blank(from, to, function string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, from, text, parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	for _, d := range file.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok || f.Recv != nil || f.Name.Name != function {
			continue
		}
		begin, end := set.Position(f.Body.Lbrace).Offset, set.Position(f.Body.Rbrace).Offset
		return os.WriteFile(to, fmt.Appendf(nil, "%s{ return nil %s", text[:begin], text[end:]), 0o600)
	}
	return fmt.Errorf("%s has no function %s any more: say here what stands in its place", from, function)
}
