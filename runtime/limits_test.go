package runtime

import (
	"encoding/json"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestLimitsThatHold(t *testing.T) {
	for name, tt := range map[string]struct{ held, change, want string }{
		"what is not named stays": {
			`{"memory":{"limit":100,"swap":100},"cpu":{"shares":5,"quota":7,"period":9}}`, `{"cpu":{"quota":8}}`,
			`{"memory":{"limit":100,"swap":100},"cpu":{"shares":5,"quota":8,"period":9}}`,
		},
		"higher memory, no swap":          {`{"memory":{"limit":100,"swap":100}}`, `{"memory":{"limit":150}}`, `{"memory":{"limit":150,"swap":150}}`},
		"lower memory, some swap":         {`{"memory":{"limit":100,"swap":130}}`, `{"memory":{"limit":50}}`, `{"memory":{"limit":50,"swap":80}}`},
		"memory without limit":            {`{"memory":{"limit":100,"swap":130}}`, `{"memory":{"limit":-1}}`, `{"memory":{"limit":-1,"swap":-1}}`},
		"swap without limit stays so":     {`{"memory":{"limit":100,"swap":-1}}`, `{"memory":{"limit":150}}`, `{"memory":{"limit":150,"swap":-1}}`},
		"both":                            {`{"memory":{"limit":100,"swap":100}}`, `{"memory":{"limit":150,"swap":160}}`, `{"memory":{"limit":150,"swap":160}}`},
		"a node without swap accounting":  {`{"memory":{"limit":100}}`, `{"memory":{"limit":150}}`, `{"memory":{"limit":150}}`},
		"nothing was known":               {`null`, `{"memory":{"limit":150}}`, `{"memory":{"limit":150}}`},
		"huge pages are named all or not": {`{"hugepageLimits":[{"pageSize":"2MB","limit":5}]}`, `{"hugepageLimits":[{"pageSize":"1GB","limit":6}]}`, `{"hugepageLimits":[{"pageSize":"1GB","limit":6}]}`},
		"cgroup v2 by name":               {`{"unified":{"a.b":"1","c.d":"2"}}`, `{"unified":{"c.d":"3"}}`, `{"unified":{"a.b":"1","c.d":"3"}}`},
	} {
		t.Run(name, func(t *testing.T) {
			held, change := limitsFrom(t, tt.held), limitsFrom(t, tt.change)
			got, err := mergeLimits(held, withSwapAllowance(held, change))
			if err != nil {
				t.Fatal(err)
			}
			if text := limitsText(t, got); text != tt.want {
				t.Errorf("got %s, want %s", text, tt.want)
			}
			if limitsText(t, held) != tt.held || limitsText(t, change) != tt.change {
				t.Errorf("the given ones changed: %s, %s", limitsText(t, held), limitsText(t, change))
			}
		})
	}
}

func TestLimitsAfterPlugins(t *testing.T) {
	for name, tt := range map[string]struct{ asked, wished, want string }{
		"memory alone":       {`{"memory":{"limit":100,"swap":100}}`, `{"memory":{"limit":120,"swap":100}}`, `{"memory":{"limit":120,"swap":120}}`},
		"memory and swap":    {`{"memory":{"limit":100,"swap":100}}`, `{"memory":{"limit":120,"swap":130}}`, `{"memory":{"limit":120,"swap":130}}`},
		"no memory":          {`{"memory":{"limit":100,"swap":150}}`, `{"memory":{"limit":100,"swap":150}}`, `{"memory":{"limit":100,"swap":150}}`},
		"swap as it is":      {`{"memory":{"limit":100,"swap":-1}}`, `{"memory":{"limit":120,"swap":-1}}`, `{"memory":{"limit":120,"swap":-1}}`},
		"nothing asked":      {`{}`, `{"memory":{"limit":120}}`, `{"memory":{"limit":120}}`},
		"no limit was there": {`{"memory":{"swap":200}}`, `{"memory":{"limit":120,"swap":200}}`, `{"memory":{"limit":120,"swap":200}}`},
	} {
		if got := limitsText(t, afterPlugins(limitsFrom(t, tt.asked), limitsFrom(t, tt.wished))); got != tt.want {
			t.Errorf("%s: got %s, want %s", name, got, tt.want)
		}
	}
}

func limitsFrom(t *testing.T, text string) *specs.LinuxResources {
	t.Helper()
	var r *specs.LinuxResources
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

func limitsText(t *testing.T, r *specs.LinuxResources) string {
	t.Helper()
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
