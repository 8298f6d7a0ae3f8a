"""What all dashboards share: variables, links, annotations, and panels with their defaults."""

import re
from dataclasses import dataclass, field

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus
from grafana_foundation_sdk.builders import stat, table, timeseries
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

RUNBOOKS = "https://github.com/ws-guard/ws-guard/blob/main/docs/runbooks"
SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
WIDTH = 24
# A metric or what a recording rule makes of one, with the labels that it is asked for.
METRIC = re.compile(r"\b((?:[a-z]+:)?(?:wsguard_|websocket_)[a-z0-9_:]+|up)\b(?:\{([^}]*)\})?")

# Metrics whose samples name the connection behind them.
TRACED = re.compile(
    r"\bwsguard_server_(?:(?:handshake|pong|tcp_rtt)_seconds_bucket|closed_total|charged_seconds_total)\b"
)

VARIABLES = ["cluster", "node", "instance"]
# Selects the series of chosen servers, in dashboards that have these variables.
SERVERS = '{port=~"$port",server=~"$server"}'


def chosen(*variables: str) -> str:
    """Label matchers for variables."""
    return ",".join(f'{name}=~"${name}"' for name in variables)


def selected(expr: str, labels: str) -> str:
    """Name in each selector of `expr` the variables that the dashboard has."""

    def select(found: re.Match[str]) -> str:
        name, own = found.groups()
        return f"{name}{{{labels}{',' + own if own else ''}}}"

    return METRIC.sub(select, expr)


@dataclass
class Panel:
    """One question, and the alerts that lead to it. `id` is part of their links: never reuse one."""

    id: int
    title: str
    description: str
    unit: str
    queries: list[tuple[str, str]]
    alerts: list[str] = field(default_factory=list)
    width: int = 12
    height: int = 8
    # The last variable that chooses what it shows: `instance`, or `node` where it asks for pods in a
    # dashboard of the guard, or `cluster` where it asks for all nodes together.
    scope: str = "instance"

    def builder(self):
        """The builder of its kind, without what all kinds have."""
        raise NotImplementedError

    def query(self, expr: str, legend: str, ref: str):
        return (
            prometheus.Dataquery().datasource(SOURCE).ref_id(ref).expr(expr).legend_format(legend)
        )

    def build(self):
        labels = chosen(*VARIABLES[: VARIABLES.index(self.scope) + 1])
        panel = (
            self.builder()
            .id(self.id)
            .title(self.title)
            .description(self.description)
            .unit(self.unit)
            .datasource(SOURCE)
            .span(self.width)
            .height(self.height)
            .links([runbook(alert) for alert in self.alerts])
        )
        for number, (expr, legend) in enumerate(self.queries):
            panel = panel.with_target(
                self.query(selected(expr, labels), legend, chr(ord("A") + number))
            )
        return panel


class Lines(Panel):
    """Series over time."""

    def builder(self):
        legend = (
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(options.LegendDisplayMode.LIST)
            .placement(options.LegendPlacement.BOTTOM)
        )
        tooltip = (
            common.VizTooltipOptions()
            .mode(options.TooltipDisplayMode.MULTI)
            .sort(options.SortOrder.DESCENDING)
        )
        return timeseries.Panel().min(0).fill_opacity(10).legend(legend).tooltip(tooltip)

    def query(self, expr, legend, ref):
        query = super().query(expr, legend, ref).range()
        # One series of exemplars is enough: those of all quantiles are the same.
        return query.exemplar(True) if TRACED.search(expr) and ref == "A" else query


@dataclass
class Number(Panel):
    """One number, now. With `bad` it is red from 1 on, and green below."""

    width: int = 4
    height: int = 4
    bad: bool = False

    def builder(self):
        steps = [model.Threshold(color="green" if self.bad else "blue")]
        if self.bad:
            steps.append(model.Threshold(color="red", value=1.0))
        return (
            stat.Panel()
            .color_mode(options.BigValueColorMode.VALUE)
            .graph_mode(options.BigValueGraphMode.NONE)
            .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
            .thresholds(
                dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps)
            )
        )

    def query(self, expr, legend, ref):
        return super().query(expr, legend, ref).instant()


class Rows(Panel):
    """A table of labels."""

    def builder(self):
        hidden = {"Time": True, "Value": True, "__name__": True, "job": True}
        return table.Panel().with_transformation(
            model.DataTransformerConfig(
                id_val="organize", options={"excludeByName": hidden, "indexByName": {}}
            )
        )

    def query(self, expr, legend, ref):
        return super().query(expr, legend, ref).instant().format(PromQueryFormat.TABLE)


class Heat(Panel):
    """A histogram over time; its query is of buckets, by `le`."""

    def builder(self):
        return (
            heatmap.Panel()
            .calculate(False)
            .color(heatmap.HeatmapColorOptions().scheme("Oranges").steps(64))
            .y_axis(heatmap.YAxisConfig().unit(self.unit))
        )

    def query(self, expr, legend, ref):
        return super().query(expr, legend, ref).range().format(PromQueryFormat.HEATMAP)


def runbook(alert: str):
    return (
        dashboard.DashboardLink(f"Runbook: {alert}")
        .type(model.DashboardLinkType.LINK)
        .url(f"{RUNBOOKS}/{alert}.md")
        .target_blank(True)
    )


def rates(*pairs: tuple[str, str]) -> list[tuple[str, str]]:
    """The sum of each counter's rate, all nodes together."""
    return [(f"sum(rate({metric}[$__rate_interval]))", legend) for metric, legend in pairs]


def rate_by(label: str, metric: str, legend: str | None = None) -> tuple[str, str]:
    """A counter's rate by one label."""
    return (
        f"sum by ({label}) (rate({metric}[$__rate_interval]))",
        legend or f"{{{{{label}}}}}",
    )


def quantiles(histogram: str) -> list[tuple[str, str]]:
    """Median, 90 and 99 percent."""
    return [
        (
            f"histogram_quantile({q}, sum by (le) (rate({histogram}_bucket[$__rate_interval])))",
            legend,
        )
        for q, legend in [(0.5, "p50"), (0.9, "p90"), (0.99, "p99")]
    ]


def heat(histogram: str, labels: str = "") -> list[tuple[str, str]]:
    """All buckets, of the series with these labels."""
    return [(f"sum by (le) (rate({histogram}_bucket{labels}[$__rate_interval]))", "{{le}}")]


def by_server(q: float, histogram: str) -> tuple[str, str]:
    """A quantile by server and port, of those that are chosen."""
    rate = f"rate({histogram}_bucket{SERVERS}[$__rate_interval])"
    return (
        f"histogram_quantile({q}, sum by (server, port, le) ({rate}))",
        "{{server}} port {{port}}",
    )


def variable(name: str, label: str, description: str, metric: str, parents: list[str]):
    """Values of a label; all of them, and series without it, unless one is chosen."""
    everything = model.VariableOption(selected=True, text=["All"], value=["$__all"])
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .description(description)
        .datasource(SOURCE)
        .query(f"label_values({metric}{{{chosen(*parents)}}}, {name})")
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(everything)
    )


POLICY = [
    "max_ping_rate",
    "window_seconds",
    "max_ping_rate_per_connection",
    "connection_share",
    "pace_bytes_per_second",
]


def annotation(name: str, color: str, expr: str):
    return dashboard.AnnotationQuery().name(name).datasource(SOURCE).icon_color(color).expr(expr)


def annotations(labels: str):
    """Changes of the policy, and starts of daemons and of servers' processes."""
    changed = " or ".join(f"changes(wsguard_policy_{setting}[2m]) > 0" for setting in POLICY)
    # A new action is a new series.
    changed += " or (wsguard_policy_info unless wsguard_policy_info offset 2m)"
    changed += " and on (instance) wsguard_up offset 2m"
    started = "changes(wsguard_start_time_seconds[2m]) > 0"
    started += " or increase(wsguard_server_restarts_total[2m]) > 0"
    return [
        annotation("Policy changes", "blue", selected(changed, labels)),
        annotation("Restarts", "orange", selected(started, labels)),
    ]


@dataclass
class Board:
    """A dashboard. Its clusters, nodes and instances are those of `metric`."""

    uid: str
    title: str
    description: str
    metric: str
    rows: list[tuple[str, list[Panel]]]
    # It asks for figures by server, and has variables for them.
    servers: bool = False

    def build(self):
        board = (
            dashboard.Dashboard(f"ws-guard / {self.title}")
            .uid(f"ws-guard-{self.uid}")
            .description(self.description)
            .tags(["ws-guard"])
            .refresh("30s")
            .time("now-1h", "now")
            .timezone("browser")
            .tooltip(model.DashboardCursorSync.CROSSHAIR)
            .links([self.others()])
            .variables(self.variables())
            .annotations(annotations(chosen("cluster", "node")))
        )
        for number, (title, panels) in enumerate(self.rows):
            board = board.with_row(dashboard.Row(title).id(1000 + number))
            for panel in panels:
                board = board.with_panel(panel.build())
        return board.build()

    def variables(self):
        nodes = "Nodes of a cluster; on hosts without one the label is missing, and All is all."
        chosen = [
            dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"),
            variable("cluster", "Cluster", "Set by Prometheus' external labels.", self.metric, []),
            variable("node", "Node", nodes, self.metric, ["cluster"]),
            variable(
                "instance",
                "Instance",
                "The guard of a node, or a pod of the companion server.",
                self.metric,
                ["cluster", "node"],
            ),
        ]
        if self.servers:
            ended, instances = "wsguard_connections_ended_total", ["cluster", "node", "instance"]
            chosen += [
                variable("port", "Port", "A protected port.", ended, instances),
                variable(
                    "server",
                    "Server",
                    "A server's address; other is all but the first 64 of a node.",
                    ended,
                    [*instances, "port"],
                ),
            ]
        return chosen

    def others(self):
        return (
            dashboard.DashboardLink("ws-guard")
            .type(model.DashboardLinkType.DASHBOARDS)
            .tags(["ws-guard"])
            .include_vars(True)
            .keep_time(True)
        )
