// Reads status.json every two seconds and draws it. Text from the server is only ever set as text, never as markup.

import { intervals, lineChart, short } from "./charts.js";

const EVERY_MS = 2000;
const percent = (share) => `${(share * 100).toFixed(share === 1 || share === 0 ? 0 : 1)} %`;

function element(name, className = "", ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children.filter((child) => child !== null));
  return made;
}

function card(title, ...children) {
  return element("section", "card", element("h3", "", title), ...children);
}

function figures(pairs) {
  return element("div", "figures", ...pairs.map(([name, value]) =>
    element("div", "", element("b", "", value), element("span", "", name))));
}

function legend(...names) {
  return element("ul", "legend", ...names.map(([className, name]) => element("li", className, element("i"), name)));
}

function ago(seconds) {
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`;
}

function verdict(policy) {
  const below = policy.success.filter((row) => row.below_expected).map((row) => row.task);
  const { calibrated, judged, share, unhealthy_streams: unhealthy } = policy.health;
  const findings = (severity) => policy.findings.filter((finding) => finding.severity === severity).map((f) => words(f.code));
  if (below.length) return ["error", `succeeds less than expected: ${below.join(", ")}`];
  if (findings("error").length) return ["error", `training: ${findings("error").join(", ")}`];
  if (unhealthy) return ["warning", `out of its element: ${unhealthy} robot${unhealthy === 1 ? "" : "s"}`];
  if (findings("warning").length) return ["warning", `training: ${findings("warning").join(", ")}`];
  if (!calibrated) return ["info", "no health thresholds"];
  if (!share) return ["info", "health is not judged"];
  if (!judged.healthy && !judged.unhealthy) return ["info", "not judged yet"];
  return ["ok", "healthy"];
}

const words = (name) => name.replaceAll("_", " ");

function latency(policy, now) {
  const last = policy.live.at(-1);
  const ms = (key) => (last?.latency_ms[key] == null ? "-" : `${short(last.latency_ms[key])} ms`);
  const series = ["p50", "p99"].map((key, index) => ({
    className: index ? "second" : "first",
    points: policy.live.map((point) => [point.time, point.latency_ms[key]]),
  }));
  const drawn = policy.live.some((point) => point.latency_ms.p50 !== null);
  const from = policy.live[0]?.time;
  return card("Chunk latency in the server, last five minutes",
    figures([["p50", ms("p50")], ["p99", ms("p99")], ["chunks/s", last ? short(last.chunks_per_second) : "-"],
      ["refused/s", last ? short(last.refused_per_second) : "-"], ["waiting", String(policy.waiting)]]),
    drawn
      ? lineChart(series, { label: "p50 and p99 latency in milliseconds", from, to: policy.live.at(-1)?.time,
        xLabels: [[from, `${ago(now - from)} ago`, "start"], [policy.live.at(-1).time, "now", "end"]] })
      : element("p", "empty", "no chunk in the last minutes"),
    legend(["first", "p50, ms"], ["second", "p99, ms"]));
}

function signals(policy) {
  const names = Object.keys(policy.health.signals).sort();
  const { healthy, unhealthy } = policy.health.judged;
  const body = names.length
    ? element("div", "signals", ...names.map((name) => {
      const latest = policy.health.signals[name];
      const points = policy.live.map((point) => [point.time, point.signals[name] ?? null]);
      return element("div", "",
        element("p", "", words(name), element("b", latest > 1 ? "error" : "", latest.toFixed(2))),
        lineChart([{ className: latest > 1 ? "error" : "first", points }],
          { label: `${words(name)} relative to its threshold`, height: 90, bare: true, limit: 1, from: policy.live[0]?.time,
            to: policy.live.at(-1)?.time }));
    }))
    : element("p", "empty", policy.health.calibrated ? "no chunk has been judged yet"
      : "this bundle has no thresholds: chunkcast-health monitor measures them");
  return card("Health signals, score over threshold (dashed: 1)",
    figures([["judged healthy", String(healthy)], ["unhealthy", String(unhealthy)], ["not judged", String(policy.health.skipped)]]), body);
}

function success(policy) {
  const rows = policy.success.map((row) => {
    const marks = [];
    if (row.expected) {
      marks.push({ className: "first", ...row.expected,
        title: `expected ${percent(row.expected.ratio)} (${percent(row.expected.low)} to ${percent(row.expected.high)}, ${words(row.expected.source)})` });
    }
    if (row.measured) {
      marks.push({ className: row.below_expected ? "error" : "second", ...row.measured,
        title: `measured ${percent(row.measured.ratio)} of ${row.measured.episodes} (${percent(row.measured.low)} to ${percent(row.measured.high)})` });
    }
    const text = row.measured ? `${row.task}: ${percent(row.measured.ratio)} of ${row.measured.episodes}` : row.task;
    return element("div", row.task === "all" ? "row total" : "row",
      element("span", row.below_expected ? "error" : "", text),
      marks.length ? intervals(marks, marks.map((mark) => mark.title).join("; ")) : element("span", "empty", "unknown"));
  });
  return card("Success: expected and measured, with 95 % intervals",
    element("div", "success", ...rows), legend(["first", "expected"], ["second", "measured, last 100 episodes a task"]));
}

function training(policy) {
  const curve = policy.loss_curve;
  const epochs = curve.map((each) => each.epoch);
  const chart = curve.length
    ? lineChart(["train", "validation"].map((split, index) => ({
      className: index ? "second" : "first", points: curve.map((each) => [each.epoch, each[split]]),
    })), { label: "noise-prediction error by epoch", log: true,
      xLabels: [[epochs[0], `epoch ${epochs[0]}`, "start"], [epochs.at(-1), `${epochs.at(-1)}`, "end"]] })
    : element("p", "empty", "the bundle has no loss curve");
  const count = (severity) => policy.findings.filter((finding) => finding.severity === severity).length;
  return card("Training: noise MSE by epoch",
    figures([["validation", short(policy.training_noise_mse.validation)], ["errors", String(count("error"))],
      ["warnings", String(count("warning"))]]),
    chart, curve.length ? legend(["first", "training"], ["second", "held-out episodes"]) : null,
    policy.findings.length ? element("details", "", element("summary", "", `${policy.findings.length} findings`),
      element("ul", "", ...policy.findings.map((finding) => element("li", "",
        element("span", finding.severity, `${finding.severity}: ${words(finding.code)}. `), `${finding.evidence}; ${finding.advice}`)))) : null);
}

function versions(policy) {
  return card("Versions", table(["version", "state"], policy.versions.map((each) => [each.version, each.state])));
}

function episodes(policy, now) {
  const rows = policy.recent_episodes.map((each) => {
    const colour = { success: "ok", failure: "error" }[each.outcome] ?? "info";
    return [ago(now - each.ended), each.task, element("span", colour, each.outcome), String(each.steps), each.robot_id || "-"];
  });
  const body = rows.length ? table(["ago", "task", "outcome", "steps", "robot"], rows)
    : element("p", "empty", "no robot has reported an episode");
  return card("Recent episodes", body);
}

function table(headings, rows) {
  return element("table", "",
    element("thead", "", element("tr", "", ...headings.map((heading) => element("th", "", heading)))),
    element("tbody", "", ...rows.map((row) => element("tr", "", ...row.map((cell) => element("td", "", cell))))));
}

function draw(status) {
  const robots = status.active_streams === 1 ? "1 robot" : `${status.active_streams} robots`;
  document.getElementById("server").textContent = `${robots} connected; up ${ago(status.uptime_seconds)}`;
  const open = new Set([...document.querySelectorAll("details[open]")].map((each) => each.closest(".policy").dataset.name));
  document.getElementById("policies").replaceChildren(...status.policies.map((policy) => {
    const [level, text] = verdict(policy);
    const made = element("article", "policy",
      element("div", "title", element("h2", "", policy.name), element("code", "", policy.version),
        element("span", `badge ${level}`, text),
        element("small", "", `${policy.sampler}; ${(policy.parameters / 1e6).toFixed(1)} M parameters; ${policy.control_rate_hz} Hz`)),
      element("div", "cards", success(policy), signals(policy), latency(policy, status.time), training(policy),
        episodes(policy, status.time), versions(policy)));
    made.dataset.name = policy.name;
    if (open.has(policy.name)) made.querySelector("details")?.setAttribute("open", "");
    return made;
  }));
  document.body.dataset.ready = "yes";
}

let timer;

async function refresh() {
  try {
    const answer = await fetch("status.json", { cache: "no-store" });
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    draw(await answer.json());
  } catch (error) {
    document.getElementById("server").textContent = `the server does not answer (${error.message}); what is shown is old`;
  }
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(refresh, EVERY_MS);
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
refresh();
