"""The page: what a visitor sees, and what happens at each of its buttons (Gradio)."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import gradio as gr

from demo import OVERLAY, SHEET, DemoResult, Progress
from scripts.web_cards import error_card, note_card, picture, progress_card, score_cards, video_card
from scripts.web_sessions import Job, Session, StopRun, Workspace
from scripts.web_style import PLACEHOLDER, heading
from scripts.web_video import (
    Example,
    Limits,
    open_upload,
    overlay_frame,
    read_sentences,
    require_few,
    require_short,
    without_folder,
    zip_masks,
)
from util.drawing import read_picture
from util.errors import RunError, UserError
from util.files import bring_file
from util.video import Excerpt, Media, parse_time

STOPPED = "Stopped; nothing of this run is kept."
GONE = "this result was removed, as nothing has happened here for a while; run it again"
UNKNOWN = "something went wrong that should not; the terminal in which this page was started says what"


class SegmentVideo(Protocol):
    """What the page is given to segment with: ``segment_to_folder`` with its model."""

    def __call__(
        self,
        media: Media,
        sentences: list[str],
        folder: Path,
        *,
        threshold: float,
        score_threshold: float,
        report: Any,
    ) -> DemoResult:
        """Write a result's folder."""


class Page:
    """What happens. Visitors are told apart by Gradio's name for their tab.

    Args:
        workspace: where their files are.
        segment: finds the objects.
        limits: of what they may ask.
        example: a video to try; None: there is none.
    """

    def __init__(self, workspace: Workspace, segment: SegmentVideo, limits: Limits, example: Example | None) -> None:
        self.workspace, self.segment, self.limits, self.example = workspace, segment, limits, example

    def upload(self, path: str, request: gr.Request) -> tuple[None, str, str]:
        """A video was dropped: keep it and show its first frame, or say what is wrong with it.

        Returns:
            The upload field, empty again; the video's card; the status.
        """
        session = self._session(request)
        try:
            kept = session.take(Path(path))
            with without_folder(kept):
                media = open_upload(kept, self.limits)
                with closing(media.frames()) as frames:
                    first = next(frames).image
            return None, video_card(media, kept.name, first), ""
        except UserError as error:
            session.forget()
            return None, "", error_card(str(error))

    def take_example(self, request: gr.Request) -> tuple[None, str, str, str]:
        """The example instead of an upload, with its sentences."""
        assert self.example is not None
        copy = self._session(request).folder / self.example.path.name
        bring_file(self.example.path, copy, copy=True)
        return *self.upload(str(copy), request), "\n".join(self.example.sentences)

    def run(
        self,
        text: str,
        start: str,
        end: str,
        stride: float,
        threshold: float,
        score_threshold: float,
        request: gr.Request,
    ) -> Iterator[dict[str, Any]]:
        """Segment the visitor's video, and say how far that is.

        Yields:
            What changes on the page: the values of its parts by their names.
        """
        session = self._session(request)
        yield {"status": note_card("Starting …"), "results": gr.update(visible=False), "stop": gr.update(visible=True)}
        try:
            session.job = self._start(session, text, _excerpt(start, end, stride), threshold, score_threshold)
            for progress in session.job.updates():
                session.touch()
                yield {"status": progress_card(progress)}
            session.result = session.job.result()
            yield self._shown(session, session.result, score_threshold)
        except StopRun:
            yield {"status": note_card(STOPPED)}
        except (UserError, RunError) as error:
            yield {"status": error_card(str(error))}
        except Exception:  # a bug: it must not leave the visitor waiting
            traceback.print_exc(file=sys.stderr)
            yield {"status": error_card(UNKNOWN)}
        finally:
            if session.job is not None:
                session.job.stop()
        yield {"stop": gr.update(visible=False)}

    def stop(self, request: gr.Request) -> None:
        """End the visitor's run."""
        job = self._session(request).job
        if job is not None:
            job.stop()

    def look(self, number: float, score_threshold: float, request: gr.Request) -> tuple[str, str]:
        """One frame of the result, and all scores with a mark at it."""
        result = self._session(request).result
        if result is None:
            return error_card(GONE), ""
        frame = min(max(0, int(number) - 1), result.frames - 1)
        return picture(overlay_frame(result, frame), f"frame {frame + 1}"), score_cards(result, score_threshold, frame)

    def leave(self, request: gr.Request) -> None:
        """The visitor has closed the page."""
        self.workspace.leave(str(request.session_hash))

    def _session(self, request: gr.Request) -> Session:
        return self.workspace.session(str(request.session_hash))

    def _start(self, session: Session, text: str, excerpt: Excerpt, threshold: float, score_threshold: float) -> Job:
        video = session.video
        if video is None:
            raise UserError("there is no video yet; drop one first")
        sentences = read_sentences(text, self.limits)
        media = open_upload(video, self.limits, excerpt)
        require_short(media, self.limits)
        folder = session.new_result()

        def work(report: Any) -> DemoResult:
            def counted(progress: Progress) -> None:
                require_few(progress.done, self.limits)
                report(progress)

            with without_folder(video):
                result = self.segment(
                    media, sentences, folder, threshold=threshold, score_threshold=score_threshold, report=counted
                )
            session.notes = [note.replace(str(video), video.name) for note in media.notes]
            return result

        return Job(work)

    def _shown(self, session: Session, result: DemoResult, score_threshold: float) -> dict[str, Any]:
        """Everything of a result."""
        count = result.frames
        masks = zip_masks(result)
        done = f"{count} frame{'s'[: count > 1]}, {count / result.seconds:.1f} per second."
        return {
            "status": note_card(" ".join([done, *(f"Note: {note}." for note in session.notes)])),
            "results": gr.update(visible=True),
            "overlay": str(result.folder / OVERLAY),
            "frame": gr.update(value=1, maximum=max(2, count), visible=count > 1),
            "picture": picture(overlay_frame(result, 0), "frame 1"),
            "scores": score_cards(result, score_threshold, 0),
            "sheet": picture(read_picture(result.folder / SHEET), "contact sheet"),
            "masks": gr.update(value=str(masks), label=f"Masks as ZIP ({masks.stat().st_size / 2**20:.1f} MB)"),
            "movie": str(result.folder / OVERLAY),
        }


def build(page: Page, title: str, notes: list[str], threshold: float, score_threshold: float) -> gr.Blocks:
    """Lay the page out.

    Args:
        page: what happens.
        title: of the model.
        notes: about it, shown above.
        threshold, score_threshold: where the sliders begin.
    """
    limits = page.limits
    with gr.Blocks(title="Objects by sentences", analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(heading(title, notes, limits), padding=False)
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=320):
                upload = gr.File(label="Video, GIF or picture", type="filepath", height=170, elem_id="upload")
                video = gr.HTML(elem_id="video", padding=False)
                example = gr.Button("Take the example", size="sm", visible=page.example is not None, elem_id="example")
                text = gr.Textbox(
                    "",
                    label="What to find: one object per line",
                    placeholder="the dog chasing the ball\nthe ball",
                    lines=3,
                    max_lines=limits.sentences,
                    elem_id="sentences",
                )
                with gr.Accordion("Options", open=False):
                    with gr.Row():
                        start = gr.Textbox("", label="From", placeholder="0 or 1:02", elem_id="start", min_width=90)
                        end = gr.Textbox("", label="To", placeholder="the end", elem_id="end", min_width=90)
                        stride = gr.Number(1, label="Stride", precision=0, minimum=1, min_width=90)
                    mask_slider = gr.Slider(0, 1, threshold, step=0.01, label="Mask probability of a pixel")
                    score_slider = gr.Slider(
                        0, 1, score_threshold, step=0.01, label="Score below which nothing is found", elem_id="least"
                    )
                with gr.Row():
                    go = gr.Button("Find", variant="primary", elem_id="go")
                    stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop")
                status = gr.HTML(elem_id="status", padding=False)
            with gr.Column(scale=7, min_width=420):
                empty = gr.HTML(PLACEHOLDER, padding=False)
                with gr.Column(visible=False, elem_id="results") as results:
                    with gr.Tabs():
                        with gr.Tab("Video"):
                            overlay = gr.Video(show_label=False, elem_id="overlay", buttons=[])
                        with gr.Tab("Frame by frame"):
                            frame = gr.Slider(1, 2, 1, step=1, label="Frame", elem_id="frame")
                            shown = gr.HTML(elem_id="shown", padding=False)
                        with gr.Tab("Contact sheet"):
                            sheet = gr.HTML(elem_id="sheet", padding=False)
                    scores = gr.HTML(elem_id="scores", padding=False)
                    with gr.Row():
                        masks = gr.DownloadButton("Masks as ZIP", variant="primary", elem_id="masks")
                        movie = gr.DownloadButton("Video with overlay", elem_id="movie")
        parts = {
            "status": status,
            "results": results,
            "stop": stop,
            "overlay": overlay,
            "frame": frame,
            "picture": shown,
            "scores": scores,
            "sheet": sheet,
            "masks": masks,
            "movie": movie,
        }

        def run(
            text: str,
            start: str,
            end: str,
            stride: float,
            threshold: float,
            score_threshold: float,
            request: gr.Request,
        ) -> Iterator[dict[Any, Any]]:
            for changes in page.run(text, start, end, stride, threshold, score_threshold, request):
                named = {parts[name]: value for name, value in changes.items()}
                yield {**named, empty: gr.update(visible=False)} if "overlay" in changes else named

        beside = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        upload.upload(page.upload, upload, [upload, video, status], **beside)
        example.click(page.take_example, None, [upload, video, status, text], **beside)
        asked = [text, start, end, stride, mask_slider, score_slider]
        go.click(run, asked, [*parts.values(), empty], show_progress_on=status, api_visibility="private")
        stop.click(page.stop, None, None, **beside)
        frame.change(page.look, [frame, score_slider], [shown, scores], trigger_mode="always_last", **beside)
        blocks.unload(page.leave)
    return blocks


def _excerpt(start: str, end: str, stride: float) -> Excerpt:
    first = parse_time(start, "From") if start.strip() else Excerpt().start
    last = parse_time(end, "To") if end.strip() else None
    if last is not None and last <= first:
        raise UserError("To must be later than From")
    return Excerpt(first, last, max(1, int(stride or 1)))
