"""What a reader does with a page in a browser that selenium drives."""

import json

import numpy as np
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait


class Reader:
    """A page that is open, and what its reader does."""

    def __init__(self, driver, path, *, width=1280, dark=False):
        self.driver = driver
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [theme]})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.get(f"file://{path}")
        self.wait("document.documentElement.dataset.ready || !document.getElementById('trouble').hidden")

    def run(self, script, *arguments):
        return self.driver.execute_script(f"return {script}", *arguments)

    def wait(self, condition):
        WebDriverWait(self.driver, 60).until(lambda _: self.run(condition))

    def find(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def find_all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def click(self, selector):
        self.run("arguments[0].scrollIntoView({block: 'center'})", self.find(selector))
        self.find(selector).click()

    def drag(self, element, start, end=None):
        """Clicks at a place in pixels of an element, or drags to another."""
        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        middle = np.array([element.size["width"], element.size["height"]]) // 2
        actions = ActionChains(self.driver, duration=50)
        actions.move_to_element_with_offset(element, *map(int, np.array(start) - middle))
        if end is None:
            actions.click()
        else:
            actions.click_and_hold()
            for share in (0.3, 0.6, 1.0):
                to = np.array(start) + share * (np.array(end) - start) - middle
                actions.move_to_element_with_offset(element, *map(int, np.round(to)))
            actions.release()
        actions.perform()

    def press(self, *keys):
        ActionChains(self.driver).send_keys(*keys).perform()

    def each(self, selector, expression):
        """The value of an expression in JavaScript of each ``element`` that a selector finds."""
        return self.run(
            f"[...document.querySelectorAll({json.dumps(selector)})].map((element) => {expression})"
        )

    def errors(self):
        """All that the console has."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def pixel(self):
        return self.run("[explore.state.y, explore.state.x]")

    def relations(self):
        """Cosines of the chosen pixel to all cells, and the pictures of them, of each run."""
        values = self.run("explore.shown.cosines.map((values) => [...values])")
        return values, self.each("canvas.relation", "element.toDataURL()")

    def listed(self):
        """The pixels that the table lists."""
        return self.each("#pixel-list tbody tr", "Number(element.dataset.pixel)")
