package ca

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/storelay/storelay/protocol"
)

func TestADeniedAgentStaysDenied(t *testing.T) {
	dir := t.TempDir()
	one, two := protocol.Origin{Chain: "demo", Store: "0001", Agent: "pc"}, protocol.Origin{Chain: "demo", Store: "0002", Agent: "pc"}
	here, there := Denied(dir), Denied(dir) // two processes
	want := func(agents ...protocol.Origin) {
		t.Helper()
		for _, d := range []*DenyList{here, there, Denied(dir)} {
			all, err := d.All()
			if err != nil || !slices.Equal(all, agents) {
				t.Errorf("denied %v, %v, want %v", all, err, agents)
			}
			for _, o := range []protocol.Origin{one, two} {
				if has, err := d.Has(o); err != nil || has != slices.Contains(agents, o) {
					t.Errorf("%s denied %v, %v", o, has, err)
				}
			}
		}
	}
	want()
	for range 2 {
		if err := here.Add(one, time.Now()); err != nil {
			t.Fatal(err)
		}
		want(one)
	}
	// A crash tears a line wherever it likes; what is added next is whole.
	path := filepath.Join(dir, revokedFile)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := 1; cut < len(whole)-1; cut++ {
		if err := os.WriteFile(path, append(slices.Clone(whole), whole[:cut]...), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := there.Add(two, time.Now()); err != nil {
			t.Fatal(err)
		}
		want(one, two)
	}
	if err := os.WriteFile(path, append([]byte("not ours\n"), whole...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := here.Has(one); err == nil || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("a list that cannot be read: %v, want its line", err)
	}
}
