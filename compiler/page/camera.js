// What part of a drawing is seen: moved by dragging, wheel, two fingers and keys.

const SCALES = [0.004, 4];

class Camera {
  constructor(canvas, changed) {
    Object.assign(this, { canvas, changed, x: 0, y: 0, scale: 1, width: 1, height: 1 });
    this.pointers = new Map();
    this.moved = false;
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const end of ["pointerup", "pointercancel"])
      canvas.addEventListener(end, (event) => this.up(event));
  }

  // World coordinates of a point of the canvas.
  world(px, py) {
    return [this.x + px / this.scale, this.y + py / this.scale];
  }

  wheel(event) {
    event.preventDefault();
    this.stop();
    const unit = event.deltaMode === 1 ? 16 : event.deltaMode === 2 ? this.height : 1;
    if (event.shiftKey) {
      // along, for those without a second axis
      this.pan((event.deltaX || event.deltaY) * unit, 0);
      return;
    }
    const power = event.ctrlKey ? 0.012 : 0.0016; // pinching sends small steps
    this.zoom(Math.exp(-event.deltaY * unit * power), event.offsetX, event.offsetY);
    if (event.deltaX && !event.ctrlKey) this.pan(event.deltaX * unit, 0);
  }

  down(event) {
    if (event.button !== 0) return;
    this.stop();
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
    this.moved = false;
    this.start = [event.offsetX, event.offsetY];
  }

  move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const now = [event.offsetX, event.offsetY];
    if (!this.moved && Math.hypot(now[0] - this.start[0], now[1] - this.start[1]) < 4) return;
    this.moved = true;
    const others = [...this.pointers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
    this.pointers.set(event.pointerId, now);
    if (others.length) this.pinch(before, now, others[0]);
    else this.pan(before[0] - now[0], before[1] - now[1]);
  }

  pinch(before, now, other) {
    const apart = (a) => Math.max(1, Math.hypot(a[0] - other[0], a[1] - other[1]));
    this.zoom(apart(now) / apart(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
    this.pan((before[0] - now[0]) / 2, (before[1] - now[1]) / 2);
  }

  up(event) {
    this.pointers.delete(event.pointerId);
  }

  pan(dx, dy) {
    this.x += dx / this.scale;
    this.y += dy / this.scale;
    this.changed();
  }

  zoom(factor, px = this.width / 2, py = this.height / 2) {
    const [x, y] = this.world(px, py);
    this.scale = Math.min(SCALES[1], Math.max(SCALES[0], this.scale * factor));
    this.x = x - px / this.scale;
    this.y = y - py / this.scale;
    this.changed();
  }

  // Shows a box of the world, with some room around; `most` bounds the scale.
  fit({ x, y, w, h }, most = 1, gently = true) {
    const room = 24;
    const scale = Math.max(
      SCALES[0],
      Math.min(most, (this.width - 2 * room) / w, (this.height - 2 * room) / h),
    );
    this.go(x + w / 2, y + h / 2, scale, gently);
  }

  // The beginning of a drawing: a long one seen whole would be a thread. Where it is too wide to be
  // read, the middle of what comes first (`first`) is the middle of the view.
  begin({ x, y, w, h }, first) {
    const scale = Math.max(0.55, Math.min(1, (this.width - 48) / w));
    if (h * scale <= this.height - 48 && w * scale <= this.width)
      this.fit({ x, y, w, h }, 1, false);
    else
      this.go(
        w * scale <= this.width ? x + w / 2 : first,
        y + this.height / 2 / scale - 24 / scale,
        scale,
        false,
      );
  }

  // Moves the middle of the view to a point.
  go(x, y, scale = this.scale, gently = true) {
    this.stop();
    const to = [x - this.width / 2 / scale, y - this.height / 2 / scale, scale];
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (!gently || still) {
      this.set(...to);
      return;
    }
    const from = [
      this.x + this.width / 2 / this.scale,
      this.y + this.height / 2 / this.scale,
      this.scale,
    ];
    const begun = performance.now();
    const step = (now) => {
      const part = Math.min(1, (now - begun) / 220),
        eased = 1 - (1 - part) ** 3;
      const s = from[2] * (scale / from[2]) ** eased;
      const cx = from[0] + (x - from[0]) * eased,
        cy = from[1] + (y - from[1]) * eased;
      this.set(cx - this.width / 2 / s, cy - this.height / 2 / s, s);
      this.going = part < 1 ? requestAnimationFrame(step) : 0;
    };
    this.going = requestAnimationFrame(step);
  }

  stop() {
    cancelAnimationFrame(this.going);
    this.going = 0;
  }

  set(x, y, scale) {
    Object.assign(this, { x, y, scale });
    this.changed();
  }
}
